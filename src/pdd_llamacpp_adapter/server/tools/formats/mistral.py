"""``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``; Mistral before 2025."""

from __future__ import annotations

from pdd_llamacpp_adapter.server.tools.call_body import Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, JsonShape
from pdd_llamacpp_adapter.server.tools.call_json import read_calls
from pdd_llamacpp_adapter.server.tools.tool_messages import with_short_ids

MISTRAL = CallFormat(
    name="mistral",
    parser="mistral",
    written=rf'\[TOOL_CALLS\] ?\[\{{.*"name": "{PROBE}".*\]',
    body=lambda _tools: [Space(), Json("[", call=True)],
    read=read_calls,
    markers=("[TOOL_CALLS]",),
    bare=True,
    json=JsonShape(listed=True),
    past=with_short_ids,
    short_ids=True,
)
