"""The body of ``POST /v1/completions``.

https://platform.openai.com/docs/api-reference/completions/create
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import MAX_TOP_LOGPROBS
from pdd_llamacpp_adapter.server.wire.bodies import check_items
from pdd_llamacpp_adapter.server.wire.field_table import COMPLETIONS
from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling, SamplingFields, TokenIdFields, Tokens


class CompletionRequest(TokenIdFields, SamplingFields):
    """What a client asks for."""

    fates = COMPLETIONS

    prompt: Any
    max_tokens: Tokens = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: str | None = None
    add_special_tokens: bool = True
    response_format: dict[str, Any] | None = None

    def check_length(self, most: int) -> None:
        """Refuse more than `most` token ids."""
        if isinstance(self.prompt, list):
            check_items(self.prompt, most, "prompt")

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
            InvalidRequest: a field that cannot be obeyed.
        """
        self.check_n()
        if self.echo and self.logprobs is not None:
            raise _unsupported("echo cannot be had with logprobs: those of the prompt are not computed", "echo")

    def sampling(self) -> Sampling:
        """Return how to choose tokens, and when to stop."""
        return self._sampling(max_tokens=self.max_tokens, logprobs=self.logprobs)


def one_prompt(prompt: Any) -> str | list[int]:
    """Return the one prompt, as text or as token ids, out of the four shapes that OpenAI allows.

    Raises:
        InvalidRequest: it has none of them, or there are several prompts.
    """
    if isinstance(prompt, list) and not _are_ids(prompt):
        if len(prompt) > 1 and all(isinstance(item, (str, list)) for item in prompt):
            raise _unsupported(f"one prompt can be answered per request, not {len(prompt)}", "prompt")
        prompt = prompt[0] if len(prompt) == 1 else None
    if isinstance(prompt, str) or (isinstance(prompt, list) and _are_ids(prompt)):
        if prompt:
            return prompt
        raise InvalidRequest("prompt must not be empty", param="prompt")
    raise InvalidRequest("prompt must be a string or a list of token ids", param="prompt")


def _are_ids(prompt: list[Any]) -> bool:
    return all(type(item) is int for item in prompt)


def _unsupported(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_value")
