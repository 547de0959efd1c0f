"""What an answer has said so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta, ToolCallDelta

if TYPE_CHECKING:
    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep


@dataclass(slots=True)
class MadeToolCall:
    """One tool call, complete or in the making."""

    call_id: str
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


@dataclass(slots=True)
class Transcript:
    """Collects an answer's steps."""

    keep_logprobs: bool = False
    """Whether the tokens have logprobs."""
    steps: list[AnswerStep] = field(default_factory=list)
    tool_calls: list[MadeToolCall] = field(default_factory=list)
    _content: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)

    def add(self, step: AnswerStep) -> None:
        """Add the next step."""
        self.steps.append(step)
        for delta in step.deltas:
            match delta:
                case ContentDelta(text):
                    self._content.append(text)
                case ReasoningDelta(text):
                    self._reasoning.append(text)
                case ToolCallDelta():
                    self._add_call(delta)

    def _add_call(self, delta: ToolCallDelta) -> None:
        if delta.index == len(self.tool_calls):
            self.tool_calls.append(MadeToolCall(delta.call_id or "", delta.name or "", ""))
        self.tool_calls[delta.index].arguments += delta.arguments

    @property
    def tokens(self) -> list[ShownToken]:
        """The answer's tokens."""
        return [step.token for step in self.steps if step.token is not None]

    @property
    def content(self) -> str:
        """What the assistant said to the user."""
        return "".join(self._content)

    @property
    def reasoning(self) -> str:
        """What the model thought before it spoke."""
        return "".join(self._reasoning)
