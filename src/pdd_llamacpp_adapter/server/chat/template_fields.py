"""The fields of a chat request that say how its prompt is rendered, as vLLM has them beside OpenAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.prompts.rendering import Effort, Rendering
from pdd_llamacpp_adapter.server.wire.bodies import WireModel

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_MAX_DOCUMENTS = 1024


class TemplateFields(WireModel):
    """What a client asks of the chat template; names, meanings and defaults are vLLM's."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool | None = None
    documents: Annotated[list[dict[str, str]], Field(max_length=_MAX_DOCUMENTS)] = Field(default_factory=list)
    reasoning_effort: Effort | None = None

    def rendering(self) -> Rendering:
        """Return how the prompt is to be rendered.

        Raises:
            InvalidRequest: the fields contradict each other.
        """
        if self.continue_final_message and self.add_generation_prompt:
            problem = "continue_final_message and add_generation_prompt cannot both be true"
            raise InvalidRequest(problem, param="continue_final_message")
        return Rendering(
            variables=self._variables(),
            documents=tuple(self.documents),
            continue_final_message=self.continue_final_message,
            add_special_tokens=self.add_special_tokens,
            reasoning_effort=self.reasoning_effort,
        )

    def _variables(self) -> Json:
        variables = dict(self.chat_template_kwargs)
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        return variables
