"""A model's own chat template, rendered as transformers renders it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ChatTemplate:
    """The template in a GGUF's ``tokenizer.chat_template``.

    Raises:
        ModelError: there is none, or it is not valid Jinja.
    """

    def __init__(self, template: str | None, *, bos: str, eos: str) -> None:
        # llama_cpp's formatter has transformers' own filters and extensions; its module is slow to import
        from jinja2 import TemplateSyntaxError
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        if not template:
            raise ModelError("the model has no chat template: it is a base model, give it token ids")
        self.bos = bos
        try:
            self._formatter = Jinja2ChatFormatter(template, eos_token=eos, bos_token=bos)
        except TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template is not valid: {error.message}") from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return the prompt text, ending where the assistant begins.

        Raises:
            ConfigurationError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return str(self._formatter(messages=list(messages)).prompt)
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"the model's chat template refuses these messages: {error}") from error
