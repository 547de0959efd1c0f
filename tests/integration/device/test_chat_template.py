"""Chats are rendered as transformers renders them, with which the cloud does."""

import pytest
from chat_templates import CHATML, TOOLS, WEATHER
from transformers.utils.chat_template_utils import render_jinja_template

from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate

SHAPES = [
    CHATML,
    TOOLS,
    "{{ bos_token }}{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m }}{% endfor %}",
]


@pytest.mark.parametrize("source", SHAPES)
def test_text_is_that_of_transformers(source):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<Grüße> & 'quotes'\n\n"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"arguments": {"a": [1]}, "name": "f"}, "type": "function"}],
        },
        {"role": "tool", "content": "22"},
    ]
    for tools in (None, [WEATHER]):
        theirs, _ = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=source,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
        assert ChatTemplate(source, bos="<s>", eos="</s>").render(messages, tools=tools) == theirs[0]
