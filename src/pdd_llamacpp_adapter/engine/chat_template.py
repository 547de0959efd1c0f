"""A model's own chat template, rendered as transformers renders it (``utils.chat_template_utils``)."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pdd_core.errors import InvalidRequest, ModelError
from pdd_llamacpp_adapter.engine.content_format import content_format
from pdd_llamacpp_adapter.engine.template_messages import as_expected, without_developer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_llamacpp_adapter.engine.content_format import ContentFormat

Json = dict[str, Any]

RESERVED_VARIABLES = frozenset({"messages", "tools", "documents"})
"""Variables that no caller may set by name: they come from other fields of a request."""
_CONTINUED = "<|the answer goes on here|> "
"""Stands at the end of the message that is continued, until it is rendered. A template that trims it takes off the
space at its end, as in ``transformers.utils.chat_template_utils``."""
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template's expressions raise on values that they do not expect, besides Jinja's own errors."""


class ChatTemplate:
    """The template in a GGUF's ``tokenizer.chat_template``.

    Raises:
        ModelError: there is none, or it is not valid Jinja.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        from jinja2 import TemplateSyntaxError

        if not source:
            raise ModelError("the model has no chat template: it is a base model, give it token ids")
        self.source = source
        self.bos = bos
        self.eos = eos
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template is not valid: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **variables: Any,
    ) -> str:
        """Return the prompt text, ending where the assistant begins.

        Args:
            messages: OpenAI's chat messages, content as text or as text parts. A template gets each content in the
                form that it takes (`content_format`), and a tool call's `arguments` as an object, as from vLLM.
            tools: OpenAI's function tools; None and none at all are the same to a template.
            documents: texts to answer from, for a template that reads `documents`.
            continue_final_message: end within the last message, to be continued, and begin no other.
            variables: what else the template reads, such as `enable_thinking`.

        Raises:
            InvalidRequest: the template refuses these messages, leaves out the one to continue, has no place for
                documents, or a variable has a name that is not free.
        """
        if taken := sorted(RESERVED_VARIABLES & variables.keys()):
            raise InvalidRequest(f"{taken[0]} cannot be set here", param="chat_template_kwargs")
        if documents and "documents" not in self.variables:
            problem = "the model's chat template has no place for documents: put them into a message"
            raise InvalidRequest(problem, param="documents", code="unsupported_parameter")
        given = list(messages) if self._knows_developer else without_developer([dict(one) for one in messages])
        made = as_expected(given, self.content_format)
        final = _mark_end(made) if continue_final_message else None
        context: Json = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "add_generation_prompt": not continue_final_message,
            **variables,
        }
        context |= {
            "messages": made,
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": [dict(document) for document in documents] if documents else None,
        }
        text = self._rendered(context)
        return _as_utf8(text if final is None else _up_to_end(text, final))

    def _rendered(self, context: Json) -> str:
        from jinja2 import TemplateError

        try:
            return str(self._template.render(context))
        except (TemplateError, *_REFUSALS) as error:
            problem = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequest(_as_utf8(problem), param="messages") from error

    @cached_property
    def _tree(self) -> Any:
        return _environment().parse(self.source)

    @cached_property
    def content_format(self) -> ContentFormat:
        """In which form the template takes the content of messages."""
        return content_format(self._tree)

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the template reads and does not set itself."""
        from jinja2.meta import find_undeclared_variables

        return frozenset(find_undeclared_variables(self._tree))

    @property
    def _knows_developer(self) -> bool:
        return "'developer'" in self.source or '"developer"' in self.source

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template reads `tools`: without it, tools have to be described in a message."""
        return "tools" in self.variables

    @cached_property
    def supports_system(self) -> bool:
        """Whether the template has a place for a system message, and uses it."""
        probe = "a system message"
        try:
            text = self.render([{"role": "system", "content": probe}, {"role": "user", "content": "Hi"}])
        except InvalidRequest:
            return False
        return probe in text

    @cached_property
    def alternates(self) -> bool:
        """Whether the template refuses two messages of the user in a row, as Gemma's do."""
        user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}
        try:
            self.render([user, assistant, user])
        except InvalidRequest:
            return False
        try:
            self.render([user, assistant, user, user])
        except InvalidRequest:
            return True
        return False


def _mark_end(messages: list[Json]) -> str:
    """Put the mark where the last of `messages` ends, and return the text before it.

    Raises:
        InvalidRequest: there is no text that could be continued.
    """
    last = messages[-1] if messages else {}
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUED
        return content
    if not content:
        problem = "continue_final_message needs a last message with text"
        raise InvalidRequest(problem, param="continue_final_message")
    text: str = content[-1]["text"]
    content[-1]["text"] = text + _CONTINUED
    return text


def _up_to_end(text: str, final: str) -> str:
    """Return `text` up to the mark; where the template has trimmed the message, without the white space before.

    Raises:
        InvalidRequest: the template has left out the message, `final`, or a part of it.
    """
    before, found, after = text.rpartition(_CONTINUED.strip())
    if not found or final.strip() not in before:
        problem = "the model's chat template does not put the last message into the prompt as it is"
        raise InvalidRequest(f"{problem}: it cannot be continued", param="continue_final_message")
    return before if after.startswith(" ") else before.rstrip()


def _as_utf8(text: str) -> str:
    """Return `text` with its lone surrogates, which JSON can spell and UTF-8 cannot, spelt as JSON spells them."""
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def _environment() -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):  # type: ignore[misc]  # Jinja2 has no types where it is not installed
        """``{% generation %}`` marks the assistant's words for training; here it only has to be read."""

        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, escape nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
