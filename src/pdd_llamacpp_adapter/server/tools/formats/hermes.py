"""``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; Hermes, Qwen 2.5 and 3, Granite 4."""

from __future__ import annotations

from pdd_llamacpp_adapter.server.tools.call_body import Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, JsonShape
from pdd_llamacpp_adapter.server.tools.call_json import read_calls
from pdd_llamacpp_adapter.server.tools.formats.fenced_json import FENCED_JSON

HERMES = CallFormat(
    name="hermes",
    parser="hermes",
    written=rf'<tool_call>\s*\{{"name": "{PROBE}", "arguments": \{{"of": 1\}}\}}\s*</tool_call>',
    body=lambda _tools: [Space(), Json("{", call=True)],
    read=read_calls,
    markers=("<tool_call>",),
    bare=True,
    closes=("</tool_call>",),
    json=JsonShape(),
    also=(FENCED_JSON,),
)
