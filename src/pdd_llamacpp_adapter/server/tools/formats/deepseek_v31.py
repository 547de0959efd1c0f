"""``<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>``; DeepSeek V3.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Head, Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_named
from pdd_llamacpp_adapter.server.tools.formats.deepseek_v3 import BEGINNING, CLOSES, MARKERS, SEPARATOR

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_CALL = re.compile(rf"{BEGINNING}([\w-]+)(?:{SEPARATOR})?\s*(\{{.*\}})", re.DOTALL)


def _body(tools: Tools) -> list[Step]:
    head = Head(tools, rf"(?:{SEPARATOR})?\s{{0,8}}", partly=r"[<｜tool▁sep>]{0,12}\s{0,8}")
    return [Space(*MARKERS), head, Json("{", call=False)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    call = _CALL.fullmatch(text)
    return None if call is None else read_named(call[1], call[2], tools)


DEEPSEEK_V31 = CallFormat(
    name="deepseek_v31",
    parser="deepseek_v31",
    written=rf"{MARKERS[1]}{PROBE}{SEPARATOR}\{{",
    body=_body,
    read=_read,
    markers=MARKERS,
    bare=True,
    closes=CLOSES,
)
