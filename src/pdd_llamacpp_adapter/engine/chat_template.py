"""A model's own chat template, rendered as transformers renders it (``utils.chat_template_utils``)."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pdd_core.errors import InvalidRequest, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]

RESERVED_VARIABLES = frozenset({"messages", "tools", "documents"})
"""Variables that no caller may set by name: they come from other fields of a request."""
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a template's expressions raise on values that they do not expect, besides Jinja's own errors."""

_MAX_NESTING = 200
"""Objects and arrays inside one another in a tool call's arguments; as in a request's body."""


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
        **variables: Any,
    ) -> str:
        """Return the prompt text, ending where the assistant begins.

        Args:
            messages: OpenAI's chat messages. A null `content` is rendered as the empty string, and a tool call's
                `arguments` as an object, as vLLM does: templates are written for these.
            tools: OpenAI's function tools; None and none at all are the same to a template.
            variables: what else the template reads, such as `enable_thinking`.

        Raises:
            InvalidRequest: the template refuses these messages, or a variable has a name that is not free.
        """
        from jinja2 import TemplateError

        if taken := sorted(RESERVED_VARIABLES & variables.keys()):
            raise InvalidRequest(f"{taken[0]} cannot be set here", param="chat_template_kwargs")
        context: Json = {"bos_token": self.bos, "eos_token": self.eos, "add_generation_prompt": True, **variables}
        context |= {
            "messages": [_message(message) for message in messages],
            "tools": [dict(tool) for tool in tools] if tools else None,
            "documents": None,
        }
        try:
            text = str(self._template.render(context))
        except (TemplateError, *_REFUSALS) as error:
            problem = f"the model's chat template refuses these messages: {error}"
            raise InvalidRequest(_as_utf8(problem), param="messages") from error
        return _as_utf8(text)

    @cached_property
    def supports_tools(self) -> bool:
        """Whether the template reads `tools`: without it, tools have to be described in a message."""
        from jinja2.meta import find_undeclared_variables

        return "tools" in find_undeclared_variables(_environment().parse(self.source))

    @cached_property
    def supports_system(self) -> bool:
        """Whether the template has a place for a system message, and uses it."""
        probe = "a system message"
        try:
            text = self.render([{"role": "system", "content": probe}, {"role": "user", "content": "Hi"}])
        except InvalidRequest:
            return False
        return probe in text


def _as_utf8(text: str) -> str:
    """Return `text` with its lone surrogates, which JSON can spell and UTF-8 cannot, spelt as JSON spells them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _message(message: Mapping[str, Any]) -> Json:
    made = dict(message)
    if "content" in made and made["content"] is None:
        made["content"] = ""
    calls = made.pop("tool_calls", None)
    if calls:
        made["tool_calls"] = [_call(call) for call in calls]
    return made


def _call(call: Mapping[str, Any]) -> Json:
    function = dict(call["function"])
    return {**call, "function": {**function, "arguments": arguments_object(function.get("arguments"))}}


def arguments_object(arguments: Any) -> Json:
    """Return a tool call's arguments as an object.

    What is not one, or nests too deep to be written again, becomes an empty object, as in vLLM: it lies in the
    conversation's past, and refusing it would refuse every later turn too.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) and not _nests_deeper(arguments, _MAX_NESTING) else {}


def _nests_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True


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
