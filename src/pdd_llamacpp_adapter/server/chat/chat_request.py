"""The body of ``POST /v1/chat/completions``.

https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import MAX_TOP_LOGPROBS
from pdd_llamacpp_adapter.server.chat.messages import plain_messages
from pdd_llamacpp_adapter.server.chat.template_fields import TemplateFields
from pdd_llamacpp_adapter.server.prompts.marked import marked_parts
from pdd_llamacpp_adapter.server.prompts.prepare import ChatInput
from pdd_llamacpp_adapter.server.tools.tool_use import MAX_TOOLS
from pdd_llamacpp_adapter.server.wire.bodies import check_items
from pdd_llamacpp_adapter.server.wire.sampling_fields import SamplingFields, Tokens

_SUPERSEDED = {"functions": "tools", "function_call": "tool_choice"}


class ChatRequest(TemplateFields, SamplingFields):
    """What a client asks for; `store`, `user`, `metadata` and other fields without a meaning here are ignored."""

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
    functions: Any = None
    function_call: Any = None

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
            tools=self.tools,
            tool_choice=self.tool_choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self.response_format,
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
        for name, successor in _SUPERSEDED.items():
            if getattr(self, name) is not None:
                raise InvalidRequest(
                    f"{name} is not supported: use {successor}", param=name, code="unsupported_parameter"
                )
