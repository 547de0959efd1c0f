"""The body of ``POST /v1/chat/completions``.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import MAX_TOP_LOGPROBS
from pdd_llamacpp_adapter.server.chat.chat_objects import ChatShape
from pdd_llamacpp_adapter.server.chat.messages import plain_messages
from pdd_llamacpp_adapter.server.chat.template_fields import TemplateFields
from pdd_llamacpp_adapter.server.prompts.marked import marked_parts
from pdd_llamacpp_adapter.server.prompts.prepare import ChatInput
from pdd_llamacpp_adapter.server.tools.tool_use import MAX_TOOLS, function
from pdd_llamacpp_adapter.server.wire.bodies import check_items
from pdd_llamacpp_adapter.server.wire.field_table import CHAT
from pdd_llamacpp_adapter.server.wire.pdd_fields import PDDFields
from pdd_llamacpp_adapter.server.wire.sampling_fields import SamplingFields, TokenIdFields, Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence


class ChatRequest(TemplateFields, TokenIdFields, SamplingFields):
    """What a client asks for."""

    fates = CHAT

    messages: list[Any]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] = Field(default_factory=list)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool = True
    modalities: Annotated[list[str], Field(max_length=8)] = Field(default_factory=list)
    functions: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    function_call: str | dict[str, Any] | None = None
    echo: bool = False
    include_reasoning: bool = True
    pdd: PDDFields = PDDFields()

    def check_length(self, most: int) -> None:
        """Refuse more than `most` messages, or parts and calls in them."""
        check_items(self.messages, most, "messages", inner=("content", "tool_calls"))

    def chat_input(self) -> ChatInput:
        """Return what is asked for in the server's own words.

        Raises:
            InvalidRequest: a field that cannot be obeyed.
        """
        self.check_n()
        self._check_kind()
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return ChatInput(
            messages=plain_messages(self.messages),
            marked=marked_parts(self.messages, "messages"),
            **self._tools(),
            response_format=self.response_format,
            structured_outputs=self.structured_outputs,
            include_reasoning=self.include_reasoning,
            own=self.pdd.settings(),
            rendering=self.rendering(),
            sampling=self._sampling(
                max_tokens=limit,
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            ),
        )

    def _check_kind(self) -> None:
        if any(kind != "text" for kind in self.modalities):
            problem = "modalities must be ['text']: this model makes only text"
            raise InvalidRequest(problem, param="modalities", code="unsupported_value")
        if self.functions is not None and self.tools:
            raise InvalidRequest("functions cannot be had with tools", param="functions")
        if self.function_call not in (None, "none") and self.functions is None:
            raise InvalidRequest("function_call needs functions", param="function_call")

    def _tools(self) -> dict[str, Any]:
        """Return the fields of tools, also where the request has OpenAI's older ones."""
        if self.functions is None:
            choice, parallel = self.tool_choice, self.parallel_tool_calls
            return {"tools": self.tools, "tool_choice": choice, "parallel_tool_calls": parallel}
        described = [function(one, f"functions[{index}]") for index, one in enumerate(self.functions)]
        called = self.function_call
        known = called in (None, "none", "auto")
        if isinstance(called, dict):
            known = called.get("name") in [one["name"] for one in described]
            called = {"type": "function", "function": called}
        if not known:
            rule = 'must be "none", "auto", or {"name": ...} of one of the functions'
            raise InvalidRequest(f"function_call {rule}", param="function_call")
        tools = [{"type": "function", "function": one} for one in described]
        return {"tools": tools, "tool_choice": called, "parallel_tool_calls": False}

    def shape(self, prompt: Sequence[int]) -> ChatShape:
        """Return what the answer to `prompt` is to look like."""
        last = self.messages[-1]
        echo = ""
        if self.echo and last.get("role") == "assistant":
            content = plain_messages([last])[0]["content"]
            echo = content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())
        details = self.details(self.stream_options, logprobs=self.logprobs)
        details = replace(details, sources=self.pdd.tokens)
        return ChatShape(details=details, echo=echo, prompt=prompt, legacy_call=self.functions is not None)
