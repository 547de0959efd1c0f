"""The formats of tool calls that are known, and which of them a chat template writes."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.tools.call_format import PROBE
from pdd_llamacpp_adapter.server.tools.formats.deepseek_v3 import DEEPSEEK_V3
from pdd_llamacpp_adapter.server.tools.formats.deepseek_v31 import DEEPSEEK_V31
from pdd_llamacpp_adapter.server.tools.formats.glm45 import GLM45
from pdd_llamacpp_adapter.server.tools.formats.granite import GRANITE
from pdd_llamacpp_adapter.server.tools.formats.hermes import HERMES
from pdd_llamacpp_adapter.server.tools.formats.kimi_k2 import KIMI_K2
from pdd_llamacpp_adapter.server.tools.formats.llama3_json import LLAMA3_JSON
from pdd_llamacpp_adapter.server.tools.formats.mistral import MISTRAL
from pdd_llamacpp_adapter.server.tools.formats.mistral_args import MISTRAL_ARGS
from pdd_llamacpp_adapter.server.tools.formats.olmo3 import OLMO3
from pdd_llamacpp_adapter.server.tools.formats.phi4_mini import PHI4_MINI
from pdd_llamacpp_adapter.server.tools.formats.pythonic import LLAMA4_PYTHONIC, PYTHONIC
from pdd_llamacpp_adapter.server.tools.formats.qwen3_coder import QWEN3_CODER

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate
    from pdd_llamacpp_adapter.server.tools.call_format import CallFormat

FORMATS: tuple[CallFormat, ...] = (
    HERMES,
    QWEN3_CODER,
    GLM45,
    KIMI_K2,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    MISTRAL,
    MISTRAL_ARGS,
    GRANITE,
    PHI4_MINI,
    LLAMA3_JSON,
    OLMO3,
    LLAMA4_PYTHONIC,
    PYTHONIC,
)
"""In the order in which what a template writes is compared with them: where two fit, the closer one is first."""

_TOOL = {"type": "function", "function": {"name": PROBE, "description": "", "parameters": {"type": "object"}}}
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": PROBE, "arguments": '{"of": 1}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": PROBE, "content": "1"},
]


@lru_cache(maxsize=8)
def format_of(template: ChatTemplate) -> CallFormat | None:
    """Return the format in which `template` writes the calls of earlier turns: what the model was trained on.

    None if the template does not read tools, or writes calls in a format that is not among these.
    """
    if not template.supports_tools:
        return None
    try:
        text = template.render(_PROBE, tools=[_TOOL])
    except InvalidRequest:
        return None
    return next((form for form in FORMATS if re.search(form.written, text, re.DOTALL)), None)
