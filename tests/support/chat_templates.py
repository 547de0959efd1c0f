"""Chat templates in the style of real models', and a tool, for tests of what renders them."""

CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

TOOLS = """{%- if tools %}{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif -%}
{%- for message in messages -%}
{{ message.role }}:{{ message.content }}
{%- for call in message.tool_calls or [] %}{% set f = call.function -%}
[{{ f.name }} {{ f.arguments | tojson }}]{% endfor %}
{% endfor -%}"""

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
