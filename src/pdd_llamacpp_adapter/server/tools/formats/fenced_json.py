"""A fenced block of JSON with a call and nothing else, as Qwen2.5-Coder writes it in spite of its template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Json, Space, Word
from pdd_llamacpp_adapter.server.tools.call_format import CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_calls

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_OPENS, _CLOSES = "```json", "```"
_KEYS = {"name", "arguments"}


def _body(_tools: Tools) -> list[Step]:
    return [Word(_OPENS), Space(), Json("{", call=True), Space(), Word(_CLOSES)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    value = text.removeprefix(_OPENS).removesuffix(_CLOSES)
    calls = read_calls(value, tools)
    # such a block is ordinary text, too: only what cannot be anything else is a call
    return calls if calls and json.loads(value, strict=False).keys() == _KEYS else None


FENCED_JSON = CallFormat(
    name="fenced_json", parser="", written="", body=_body, read=_read, openings=(_OPENS,)
)  # fmt: skip
