"""A call in a fenced block behind ``function<｜tool▁sep｜>NAME``; DeepSeek V3 and R1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Head, Json, Space, Word
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_named

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

MARKERS = ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>")
CLOSES = ("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")
SEPARATOR = "<｜tool▁sep｜>"
BEGINNING = rf"(?:\s|{'|'.join(MARKERS)})*"

_FENCE = "```"
_CALL = re.compile(
    rf"{BEGINNING}function(?:{SEPARATOR})?([\w-]+)\s*```json\s*(\{{.*\}})\s*```", re.DOTALL
)  # fmt: skip


def _body(tools: Tools) -> list[Step]:
    heads = [f"function{separator}{name}" for name in tools for separator in (SEPARATOR, "")]
    head = Head(heads, r"\s{0,8}```json\s{0,8}", partly=r"\s{0,8}`{0,3}[json]{0,4}\s{0,8}")
    return [Space(*MARKERS), head, Json("{", call=False), Space(), Word(_FENCE)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    call = _CALL.fullmatch(text)
    return None if call is None else read_named(call[1], call[2], tools)


DEEPSEEK_V3 = CallFormat(
    name="deepseek_v3",
    parser="deepseek_v3",
    written=rf"function{SEPARATOR}{PROBE}\s*```json",
    body=_body,
    read=_read,
    markers=MARKERS,
    bare=True,
    closes=CLOSES,
)
