"""``<function_calls>NAME(key=value)</function_calls>``, a line for each call; Olmo 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Space, Until, Word
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat
from pdd_llamacpp_adapter.server.tools.formats.pythonic import read_python

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_ENDS = "</function_calls>"


def _body(tools: Tools) -> list[Step]:
    return [Space(), Word(*(f"{name}(" for name in tools), ahead=True), Until(_ENDS)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    lines = text.removesuffix(_ENDS).splitlines()
    return read_python("\n".join(line.strip() for line in lines), tools)


OLMO3 = CallFormat(
    name="olmo3",
    parser="olmo3",
    written=rf"<function_calls>\s*{PROBE}\(of=1\)",
    body=_body,
    read=_read,
    markers=("<function_calls>",),
)
