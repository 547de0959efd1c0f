"""A chat as the server knows it, whichever route it came by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_llamacpp_adapter.server.prompts.marked import MarkedPart
    from pdd_llamacpp_adapter.server.wire.json_body import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInput:
    """A chat to go on with, in the shapes of OpenAI's chat completions."""

    messages: Sequence[Json]
    """Roles system, user, assistant (with tool_calls) and tool; `content` is a string or None."""
    tools: Sequence[Json] = ()
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    sampling: Sampling = field(default_factory=Sampling)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the model's chat template, such as `enable_thinking`."""
    marked: Sequence[MarkedPart] = ()
    """Parts that stay when the prompt is refined."""
