"""``<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>``; Kimi K2."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Head, Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_named
from pdd_llamacpp_adapter.server.tools.tool_messages import with_function_ids

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_MARKERS = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>")
_BEHIND = r":\d{1,6}\s{0,8}(?:<\|tool_call_argument_begin\|>)?\s{0,8}"
_HEAD = re.compile(rf"(?:\s|{'|'.join(map(re.escape, _MARKERS))})*functions\.([\w-]+){_BEHIND}")


def _body(tools: Tools) -> list[Step]:
    heads = [f"functions.{name}" for name in tools]
    partly = r":?\d{0,6}\s{0,8}(?:<[|a-z_]{0,28}>?)?\s{0,8}"
    return [Space(*_MARKERS), Head(heads, _BEHIND, partly=partly), Json("{", call=False)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    head = _HEAD.match(text)
    return None if head is None else read_named(head[1], text[head.end() :], tools)


KIMI_K2 = CallFormat(
    name="kimi_k2",
    parser="kimi_k2",
    written=r'<\|tool_call_begin\|>.{0,80}<\|tool_call_argument_begin\|>\s*\{"of": 1\}',
    body=_body,
    read=_read,
    markers=_MARKERS,
    bare=True,
    closes=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    past=with_function_ids,
)
