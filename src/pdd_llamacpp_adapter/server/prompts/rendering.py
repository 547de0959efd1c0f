"""How a chat becomes a prompt, besides its messages and tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.chat_template import RESERVED_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_RESERVED = RESERVED_VARIABLES | {
    "self", "most", "add_special_tokens", "chat_template", "continue_final_message", "tokenize"
}  # fmt: skip
"""What is no variable of a template, but a field of a request, or a parameter of what renders it."""
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
_EFFORT = frozenset({"reasoning_effort", "enable_thinking"})
_THOUGHTS = "think"
"""In every template of a model that thinks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What a request says about its prompt. Names and meanings are those of vLLM's chat requests."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    """For the model's chat template, such as `enable_thinking`."""
    documents: Sequence[Json] = ()
    """Texts to answer from, for a template that reads `documents`."""
    continue_final_message: bool = False
    """Go on with the last message, instead of beginning another."""
    add_special_tokens: bool | None = None
    """As in `Vocabulary.render_chat`."""
    reasoning_effort: str | None = None
    """How hard to think, for a template that reads it, or that reads whether to."""
    effort_param: str = "reasoning_effort"
    """What the route calls it."""

    def options(self) -> Json:
        """Return the keyword arguments for `Vocabulary.render_chat`: those that differ from its defaults.

        Raises:
            InvalidRequest: a variable has a name that is not free.
        """
        if taken := sorted(_RESERVED & self.variables.keys()):
            raise InvalidRequest(
                f"chat_template_kwargs must not hold {taken[0]!r}: it comes from another field",
                param="chat_template_kwargs",
            )
        options = dict(self.variables)
        if self.reasoning_effort is not None:
            # as in vLLM: some models think only when they are told to
            thinks = self.reasoning_effort != "none"
            options = {"reasoning_effort": self.reasoning_effort, "enable_thinking": thinks, **options}
        if self.documents:
            options["documents"] = self.documents
        if self.continue_final_message:
            options["continue_final_message"] = True
        if self.add_special_tokens is not None:
            options["add_special_tokens"] = self.add_special_tokens
        return options

    def check(self, template: ChatTemplate) -> None:
        """Refuse an effort that `template` cannot ask for.

        Raises:
            InvalidRequest: it reads neither the effort nor whether to think. Not to think is what a model without
                thoughts does anyway.
        """
        if self.reasoning_effort is None or template.variables & _EFFORT:
            return
        if self.reasoning_effort != "none" or _THOUGHTS in template.source:
            problem = f"{self.effort_param} is not supported: this model's chat template does not read it"
            raise InvalidRequest(problem, param=self.effort_param, code="unsupported_parameter")
