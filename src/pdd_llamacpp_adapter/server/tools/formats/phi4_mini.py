"""``functools[{"name": ..., "arguments": {...}}]``; Phi-4-mini."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Json, Word
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_calls

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_WORD = "functools"


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    return read_calls(text.removeprefix(_WORD), tools)


PHI4_MINI = CallFormat(
    name="phi4_mini",
    parser="phi4_mini_json",
    written=rf'functools\[\{{.*"name": "{PROBE}".*\]',
    body=lambda _tools: [Word(_WORD), Json("[", call=True)],
    read=_read,
    openings=(_WORD + "[",),
)
