"""In which form a chat template takes the content of messages, told from its syntax tree as vLLM tells it.

The cloud's vLLM decides by the same rule (``renderers.hf._detect_content_format``), so one chat is one prompt on
both sides. vLLM is not imported here: Jinja's own parser is enough.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class ContentFormat(StrEnum):
    """Names are those of vLLM's ``--chat-template-content-format``."""

    STRING = "string"
    """One string; parts are joined by line breaks."""
    OPENAI = "openai"
    """A list of ``{"type": "text", "text": ...}``, for a string too."""


def content_format(tree: Any) -> ContentFormat:
    """Return the form that the template with the syntax tree `tree` (``jinja2.nodes.Template``) takes.

    It takes parts if it has a loop over a message's content. What the rule does not understand, such as a loop
    with two targets, counts as a template for strings, as in vLLM.
    """
    try:
        return ContentFormat.OPENAI if any(_content_loops(tree)) else ContentFormat.STRING
    except _Unclear:
        return ContentFormat.STRING


class _Unclear(Exception):
    """A construct that the rule does not cover. Never leaves this module."""


def _content_loops(tree: Any) -> Iterator[bool]:
    """Yield for each loop whether it is one over the content of a message."""
    from jinja2 import nodes

    names = _message_names(tree)
    in_macros: dict[int, set[str]] = {}
    for macro in tree.find_all(nodes.Macro):
        taken = set(_content_arguments(tree, macro, names))
        in_macros |= {id(loop): taken for loop in macro.find_all(nodes.For)}
    for loop in tree.find_all(nodes.For):
        items = loop.iter
        found = any(_reads(items, _attribute_of(name, "content")) for name in names)
        if not found and isinstance(items, nodes.Name):
            found = items.name in in_macros.get(id(loop), {"content"})
        if found:
            _name(loop.target)
        yield found


def _message_names(tree: Any) -> list[str]:
    """Return the names that loops over the messages, or over a part of them, give to one message."""
    from jinja2 import nodes

    lists = ["messages"]
    for known in lists:  # it grows meanwhile
        for assigned in tree.find_all(nodes.Assign):
            if _reads(assigned.node, _variable(known)) and (name := _name(assigned.target)) not in lists:
                lists.append(name)
    return [
        _name(loop.target)
        for loop in tree.find_all(nodes.For)
        if any(_reads(loop.iter, _variable(known)) for known in lists)
    ]


def _content_arguments(tree: Any, macro: Any, names: list[str]) -> Iterator[str]:
    """Yield the arguments of `macro` for which a message's content is given somewhere."""
    from jinja2 import nodes

    arguments = [argument.name for argument in macro.args]
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        given = [*zip(arguments, call.args, strict=False), *((one.key, one.value) for one in call.kwargs)]
        for argument, value in given:
            if argument in arguments and any(_reads(value, _attribute_of(name, "content")) for name in names):
                yield argument


def _reads(node: Any, wanted: Callable[[Any], bool]) -> bool:
    """Return whether `node` is what is `wanted`, perhaps behind filters, tests and slices."""
    from jinja2 import nodes

    while True:
        sliced = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if not sliced and not isinstance(node, nodes.Filter | nodes.Test):
            return node is not None and wanted(node)
        node = node.node


def _variable(name: str) -> Callable[[Any], bool]:
    from jinja2 import nodes

    return lambda node: isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _attribute_of(name: str, key: str) -> Callable[[Any], bool]:
    from jinja2 import nodes

    variable = _variable(name)

    def is_attribute(node: Any) -> bool:
        if isinstance(node, nodes.Getitem):
            return variable(node.node) and isinstance(node.arg, nodes.Const) and node.arg.value == key
        return isinstance(node, nodes.Getattr) and variable(node.node) and node.attr == key

    return is_attribute


def _name(target: Any) -> str:
    from jinja2 import nodes

    if not isinstance(target, nodes.Name):
        raise _Unclear
    name: str = target.name
    return name
