"""The body of ``POST /v1/responses``.

https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import MAX_TOP_LOGPROBS
from pdd_llamacpp_adapter.server.prompts.answer_format import grammar_of
from pdd_llamacpp_adapter.server.prompts.marked import marked_parts
from pdd_llamacpp_adapter.server.prompts.prepare import ChatInput
from pdd_llamacpp_adapter.server.prompts.rendering import Effort, Rendering
from pdd_llamacpp_adapter.server.responses.input_items import chat_messages
from pdd_llamacpp_adapter.server.tools.tool_use import MAX_TOOLS, function
from pdd_llamacpp_adapter.server.wire.bodies import WireModel, check_items
from pdd_llamacpp_adapter.server.wire.field_table import RESPONSES
from pdd_llamacpp_adapter.server.wire.sampling_fields import SamplingFields, Tokens

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_LOGPROBS = "message.output_text.logprobs"


class TextFields(WireModel):
    """``text``."""

    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})


class ReasoningFields(WireModel):
    """``reasoning``; its other fields ask for summaries, which are not made."""

    effort: Effort | None = None


class ResponsesRequest(SamplingFields):
    """What a client asks for."""

    fates = RESPONSES

    input: str | list[Any]
    instructions: str | None = None
    tools: Annotated[list[Any], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextFields = Field(default_factory=TextFields)
    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    include: list[Any] = Field(default_factory=list)
    truncation: Literal["auto", "disabled"] = "disabled"
    reasoning: ReasoningFields = Field(default_factory=ReasoningFields)
    include_reasoning: bool = True
    metadata: dict[str, Any] = Field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def with_logprobs(self) -> bool:
        """Whether the answer's text comes with logprobs."""
        return _LOGPROBS in self.include

    def check_length(self, most: int) -> None:
        """Refuse more than `most` items, or parts in them."""
        if not isinstance(self.input, str):
            check_items(self.input, most, "input", inner=("content", "output"))

    def chat_input(self) -> ChatInput:
        """Return what is asked for in the server's own words.

        Raises:
            InvalidRequest: a field that cannot be obeyed.
        """
        self.check_n()
        return ChatInput(
            messages=chat_messages(self.input, self.instructions),
            marked=()
            if isinstance(self.input, str)
            else marked_parts(self.input, "input", instructions=self.instructions),
            tools=[{"type": "function", "function": tool} for tool in self._functions()],
            tool_choice=self._choice(),
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._format(),
            format_param="text.format",
            structured_outputs=self.structured_outputs,
            include_reasoning=self.include_reasoning,
            rendering=Rendering(
                variables=self.chat_template_kwargs,
                reasoning_effort=self.reasoning.effort,
                effort_param="reasoning.effort",
            ),
            sampling=self._sampling(
                max_tokens=self.max_output_tokens,
                logprobs=self.top_logprobs if self.with_logprobs else None,
            ),
        )

    def echoed(self, request: AnswerRequest) -> Json:
        """Return the fields of the request that the response repeats; `request` is what was made of them."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata,
            "parallel_tool_calls": self.parallel_tool_calls,
            "temperature": request.temperature,
            "text": {"format": self.text.format},
            "tool_choice": self.tool_choice,
            "tools": [
                {"type": "function", "strict": tool.get("strict") is True, **made}
                for tool, made in zip(self.tools, self._functions(), strict=True)
            ],
            "top_logprobs": self.top_logprobs,
            "top_p": request.top_p,
            "truncation": self.truncation,
        }

    def _functions(self) -> list[Json]:
        return [_function(tool, f"tools[{index}]") for index, tool in enumerate(self.tools)]

    def _choice(self) -> str | Json:
        choice = self.tool_choice
        if isinstance(choice, str):
            return choice
        if choice.get("type") != "function":
            raise InvalidRequest('tool_choice.type must be "function"', param="tool_choice.type")
        return {"type": "function", "function": {"name": choice.get("name")}}

    def _format(self) -> Json:
        wanted = self.text.format
        if wanted.get("type") == "json_schema":
            wanted = {"type": "json_schema", "json_schema": wanted}
        try:
            grammar_of(wanted)
        except InvalidRequest as error:
            problem = 'text.format must be {"type": "text"}, "json_object", or "json_schema" with a schema'
            raise InvalidRequest(problem, param="text.format") from error
        return wanted


def _function(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise InvalidRequest(f'{where}.type must be "function", no other is run', param=f"{where}.type")
    strict = tool.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise InvalidRequest(f"{where}.strict must be true or false", param=f"{where}.strict")
    return function(tool, where)
