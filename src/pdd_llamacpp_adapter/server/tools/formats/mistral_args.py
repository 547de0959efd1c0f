"""``[TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{...}``, or without the id; Mistral since 2025.

The three marks are control tokens in most of these models, and then add no text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.tools.call_body import Head, Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat
from pdd_llamacpp_adapter.server.tools.call_json import read_named
from pdd_llamacpp_adapter.server.tools.tool_messages import with_short_ids

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

_BEHIND = r"(?:(?:\[CALL_ID\])?[a-zA-Z0-9]{9})?(?:\[ARGS\])?\s{0,8}"


def _body(tools: Tools) -> list[Step]:
    return [Space(), Head(tools, _BEHIND, partly=r"[\w\[\]]{0,24}\s{0,8}"), Json("{", call=False)]


def _read(text: str, tools: Tools) -> list[ToolCall] | None:
    head, brace, arguments = text.strip().partition("{")
    name = next((name for name in tools if re.fullmatch(re.escape(name) + _BEHIND, head)), "")
    return read_named(name, brace + arguments, tools)


MISTRAL_ARGS = CallFormat(
    name="mistral_args",
    parser="mistral",
    written=rf"\[TOOL_CALLS\]{PROBE}(\[CALL_ID\]\w*)?\[ARGS\]\{{",
    body=_body,
    read=_read,
    markers=("[TOOL_CALLS]",),
    bare=True,
    past=with_short_ids,
    short_ids=True,
)
