"""``<|tool_call|>[{"name": ..., "arguments": {...}}]``; Granite 3. Granite 4 writes as Hermes does."""

from __future__ import annotations

from pdd_llamacpp_adapter.server.tools.call_body import Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, JsonShape
from pdd_llamacpp_adapter.server.tools.call_json import read_calls

GRANITE = CallFormat(
    name="granite",
    parser="granite",
    written=rf'<\|?tool_call\|?>\s*\[\{{.*"name": "{PROBE}".*\]',
    body=lambda _tools: [Space(), Json("[", call=True)],
    read=read_calls,
    markers=("<|tool_call|>", "<tool_call>"),
    bare=True,
    json=JsonShape(listed=True),
)
