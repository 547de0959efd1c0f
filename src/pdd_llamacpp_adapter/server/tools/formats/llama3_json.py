"""``{"name": ..., "parameters": {...}}`` as an answer's beginning, perhaps after ``<|python_tag|>``: Llama 3.1."""

from __future__ import annotations

from pdd_llamacpp_adapter.server.tools.call_body import Json, Space
from pdd_llamacpp_adapter.server.tools.call_format import PROBE, CallFormat, JsonShape
from pdd_llamacpp_adapter.server.tools.call_json import read_calls
from pdd_llamacpp_adapter.server.tools.tool_messages import one_call_each

LLAMA3_JSON = CallFormat(
    name="llama3_json",
    parser="llama3_json",
    written=rf'\{{("type": "function", )?"name": "{PROBE}", "parameters": \{{"of": 1\}}\}}',
    body=lambda _tools: [Space(), Json("{", call=True)],
    read=read_calls,
    markers=("<|python_tag|>",),
    bare=True,
    between=";",
    json=JsonShape(field="parameters"),
    past=one_call_each,
)
