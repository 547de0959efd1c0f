"""``<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>``; Qwen3-Coder, Qwen3.5.

The models often leave out the outer tags. Values are plain text: the tool's schema says what they are.
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

_CALL = re.compile(r"\s*<function=([^>]+)>(.*)</function>", re.DOTALL)
_ITEM = re.compile(r"\s*<parameter=([^>]*)>\n?(.*?)\n?</parameter>\s*", re.DOTALL)


def _body(tools: Tools) -> list[Step]:
    heads = [f"<function={name}>" for name in tools]
    return [Space(), Word(*heads), Repeated(("<parameter=", ">", "</parameter>"), "</function>")]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    found = _CALL.fullmatch(text)
    if found is None or found[1] not in tools or _ITEM.sub("", found[2]).strip():
        return None
    items = {item[1].strip(): item[2] for item in _ITEM.finditer(found[2])}
    values = {name: value_of(value, name, tools[found[1]]) for name, value in items.items()}
    try:
        call = named_call(found[1], values, tools)
    except ValueError:
        return None
    return None if call is None else [call]


QWEN3_CODER = CallFormat(
    name="qwen3_coder",
    parser="qwen3_coder",
    written=rf"<function={PROBE}>\s*<parameter=of>",
    body=_body,
    read=_read,
    markers=("<tool_call>",),
    openings=("<function=",),
    closes=("</tool_call>",),
)
