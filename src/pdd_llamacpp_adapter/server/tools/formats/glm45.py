"""``<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>``; GLM-4.5 and later.

Strings stand without quotes, all else as JSON: the tool's schema says which.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Repeated, Space, Word
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, named_call
from pdd_llamacpp_adapter.server.tools.call_values import value_of

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_ENDS = "</tool_call>"
_NAME = re.compile(r"\s*([^\s<]+)\s*")
_ITEM = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>\s*", re.DOTALL)


def _body(tools: Tools) -> list[Step]:
    marks = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    return [Space(), Word(*tools), Repeated(marks, _ENDS)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    named = _NAME.match(text)
    if named is None or named[1] not in tools:
        return None
    rest = text[named.end() :].removesuffix(_ENDS)
    items = _ITEM.findall(rest)
    if _ITEM.sub("", rest):
        return None
    try:
        values = {key.strip(): value_of(value, key.strip(), tools[named[1]]) for key, value in items}
        call = named_call(named[1], values, tools)
    except ValueError:
        return None
    return None if call is None else [call]


GLM45 = CallFormat(
    name="glm45",
    parser="glm45",
    written=rf"<tool_call>\s*{PROBE}\s*<arg_key>of</arg_key>",
    body=_body,
    read=_read,
    markers=("<tool_call>",),
)
