"""``[NAME(key=value), ...]``, as an answer's beginning; Llama 3.2 and 4."""

from __future__ import annotations

import ast
import warnings
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.server.tools.call_body import NoCall, Space, Word
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, named_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_NAMES = {"true": True, "false": False, "null": None}
"""JSON's, where Python has others."""


class _Bracketed:
    """A bracket with all that is in it, up to the one that closes it; brackets in strings do not count."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._quote = ""
        self._escaped = False
        self._scanned = -1

    def end(self, text: str, at: int) -> int | None:
        """Return where the bracket is closed."""
        for position in range(max(at, self._scanned), len(text)):
            char = text[position]
            if self._quote:
                if self._escaped or char == "\\":
                    self._escaped = not self._escaped
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in _CLOSERS:
                self._open.append(_CLOSERS[char])
            elif char in ")]}":
                if not self._open or self._open.pop() != char:
                    raise NoCall
                if not self._open:
                    return position + 1
        self._scanned = len(text)
        return None


def _body(tools: Tools) -> list[Step]:
    return [Space(), Word(*(f"[{name}(" for name in tools), ahead=True), _Bracketed()]


def read_python(text: str, tools: Tools) -> list[ToolCall] | None:
    """Return the calls in `text`, Python expressions one after the other or in a list; None if one is no call."""
    try:
        with warnings.catch_warnings():  # of escapes in strings that Python does not know
            warnings.simplefilter("ignore")
            parsed = ast.parse(text.strip())
        nodes = [statement.value for statement in parsed.body if isinstance(statement, ast.Expr)]
        if len(nodes) != len(parsed.body):
            return None
        calls = [_call(node, tools) for node in _listed(nodes)]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return [call for call in calls if call] if calls and all(calls) else None


def _listed(nodes: Sequence[ast.expr]) -> Sequence[ast.expr]:
    return nodes[0].elts if len(nodes) == 1 and isinstance(nodes[0], ast.List | ast.Tuple) else nodes


def _call(node: ast.expr, tools: Tools) -> ToolCall | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        return None
    arguments = {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    return None if None in arguments else named_call(node.func.id, arguments, tools)


def _value(node: ast.expr) -> Any:
    """Return a literal as JSON has it.

    Raises:
        ValueError: it is none.
    """
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError(ast.dump(node)[:40])


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError("a key that JSON cannot have")


PYTHONIC = CallFormat(
    name="pythonic",
    parser="pythonic",
    written=rf"\[{PROBE}\(of=1\)\]",
    body=_body,
    read=read_python,
    bare=True,
)
LLAMA4_PYTHONIC = CallFormat(
    name="llama4_pythonic",
    parser="llama4_pythonic",
    written=rf"<\|python_start\|>\[{PROBE}\(of=1\)\]",
    body=_body,
    read=read_python,
    markers=("<|python_start|>",),
    bare=True,
    closes=("<|python_end|>",),
)
