"""Chat templates in the shapes of well-known families, written for these tests.

What matters is how they take content, roles, tools and results; the words are shorter than those of real ones.
"""
# ruff: noqa: E501 - a line break in a template is a line break in a prompt

GENERATION = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

STRINGS = (
    """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}"""
    + GENERATION
)
"""Strings only, as most models of 2023 and 2024."""

PARTS = (
    """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}"""
    + GENERATION
)
"""Loops over parts: a string would be gone, letter by letter. As the first Qwen2-VL and SmolVLM."""

MACRO = (
    """{%- macro shown(given) %}
{%- if given is string %}{{ given }}
{%- else %}{% for item in given %}{% if item.text %}{{ item.text }}{% endif %}{% endfor %}{% endif %}
{%- endmacro %}
{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + shown(messages[0].content) + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'system' and not loop.first %}{{ raise_exception('System message must be at the beginning.') }}
{%- elif message.role != 'system' %}
{%- set text = shown(message.content) | trim %}
{{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}"""
    + GENERATION
)
"""A macro takes strings and parts, and the system's message must be the first. As Qwen3.5."""

ASSIGNED = (
    """{%- set rest = messages[1:] if messages[0]['role'] == 'system' else messages %}
{%- set loop_messages = messages %}
{%- for m in loop_messages | list %}<|im_start|>{{ m['role'] }}
{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}{{ c['text'] | trim }}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}"""
    + GENERATION
)
"""The list of messages under another name."""

CONTENT_NAMED = (
    """{% for message in messages %}{% set content = message['content'] %}<|im_start|>{{ message.role }}
{% if content is string %}{{ content }}{% else %}{% for item in content %}{{ item.text }}{% endfor %}{% endif %}<|im_end|>
{% endfor %}"""
    + GENERATION
)
"""As LLaVA's and Phi's: a loop over a variable called `content`."""

KIMI = """{%- macro words(msg) %}{% set c = msg.get('content') %}
{%- if c is string %}{{ c }}{% elif c is not none %}{% for content in c %}{{ content['text'] }}{% endfor %}{% endif %}
{%- endmacro %}
{%- if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson(separators=(',', ':')) }}<|im_end|>{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}<|im_assistant|>assistant<|im_middle|>{{ words(message) }}
{%- if message.tool_calls %}<|tool_calls_section_begin|>
{%- for call in message.tool_calls %}<|tool_call_begin|>{{ call['id'] }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string %}{{ call.function.arguments }}
{%- else %}{{ call.function.arguments | tojson }}{% endif %}<|tool_call_end|>
{%- endfor %}<|tool_calls_section_end|>{% endif %}
{%- elif message.role == 'tool' %}<|im_system|>tool<|im_middle|>## Return of {{ message.tool_call_id }}
{{ words(message) }}
{%- else %}<|im_{{ message.role }}|>{{ message.get('name') or message.role }}<|im_middle|>{{ words(message) }}{% endif %}<|im_end|>
{%- endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""

GLM = """[gMASK]<sop>
{%- if tools %}<|system|>
# Tools
<tools>
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}
{% endfor %}</tools>{% endif %}
{%- macro visible_text(content) %}
{%- if content is string %}{{ content }}
{%- elif content is iterable and content is not mapping %}
{%- for item in content %}{% if item is mapping and item.type == 'text' %}{{ item.text }}{% elif item is string %}{{ item }}{% endif %}{% endfor %}
{%- else %}{{ content }}{% endif %}
{%- endmacro %}
{%- for m in messages %}
{%- if m.role == 'user' %}<|user|>
{{ visible_text(m.content) }}
{%- elif m.role == 'assistant' %}<|assistant|>
{%- if m.reasoning_content is string %}
<think>{{ m.reasoning_content.strip() }}</think>{% endif %}
{%- if visible_text(m.content).strip() %}
{{ visible_text(m.content).strip() }}{% endif %}
{%- for tc in m.tool_calls or [] %}{% set tc = tc.function %}
<tool_call>{{ tc.name }}
{% for k, v in tc.arguments.items() %}<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}</tool_call>{% endfor %}
{%- elif m.role == 'tool' %}<|observation|>
{%- if m.content is string %}
<tool_response>
{{ m.content }}
</tool_response>{% else %}{% for tr in m.content %}
<tool_response>
{{ tr.output if tr.output is defined else tr }}
</tool_response>{% endfor %}{% endif %}
{%- elif m.role == 'system' %}<|system|>
{{ visible_text(m.content) }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{{ '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}{% endif %}"""

MISTRAL_SMALL = """{%- if messages[0]['role'] == 'system' %}
{%- if messages[0]['content'] is string %}{% set system_message = messages[0]['content'] %}
{%- else %}{% set system_message = messages[0]['content'][0]['text'] %}{% endif %}
{%- set loop_messages = messages[1:] %}
{%- else %}{% set system_message = 'You are a model.' %}{% set loop_messages = messages %}{% endif %}
{{- bos_token }}[SYSTEM_PROMPT]{{ system_message }}[/SYSTEM_PROMPT]
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in loop_messages %}
{%- if message['role'] == 'user' %}
{%- if message['content'] is string %}[INST]{{ message['content'] }}[/INST]
{%- else %}[INST]{% for block in message['content'] %}
{%- if block['type'] == 'text' %}{{ block['text'] }}{% else %}{{ raise_exception('Only text is supported') }}{% endif %}
{%- endfor %}[/INST]{% endif %}
{%- elif message['role'] == 'assistant' %}
{%- if message['tool_calls'] is defined and message['tool_calls'] %}
{%- for call in message['tool_calls'] %}
{%- if call['id'] | length != 9 %}{{ raise_exception('Tool call IDs should be of length 9!') }}{% endif %}
{{- '[TOOL_CALLS]' + call['function']['name'] + '[CALL_ID]' + call['id'] + '[ARGS]' + call['function']['arguments'] | tojson }}
{%- endfor %}{{ eos_token }}
{%- elif message['content'] is string %}{{ message['content'] + eos_token }}
{%- else %}{{ message['content'][0]['text'] + eos_token }}{% endif %}
{%- elif message['role'] == 'tool' %}[TOOL_RESULTS]{{ message['tool_call_id'] }}[TOOL_CONTENT]{{ message['content'] | string }}[/TOOL_RESULTS]
{%- else %}{{ raise_exception('Only user, assistant and tool roles are supported') }}{% endif %}
{%- endfor %}"""

GEMMA2 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no alternation') }}{% endif %}
{%- set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- if messages[0]['content'] is string %}{% set first_user_prefix = messages[0]['content'] + '\\n\\n' %}
{%- else %}{% set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' %}{% endif %}
{%- set loop_messages = messages[1:] %}
{%- else %}{% set first_user_prefix = '' %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}
{%- if message['content'] is string %}{{ message['content'] | trim }}
{%- elif message['content'] is iterable %}
{%- for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}
{%- else %}{{ raise_exception('Invalid content type') }}{% endif %}
{{ '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

LLAMA4 = """{{- bos_token }}
{%- for message in messages %}
{{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else %}{% for content in message['content'] %}{% if content['type'] == 'text' %}{{ content['text'] | trim }}{% endif %}{% endfor %}{% endif %}
{{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{% endif %}"""

DEVELOPER = (
    """{% for message in messages %}
{%- if message.role in ['developer', 'system'] %}<|im_start|>developer
# Instructions
{{ message.content }}<|im_end|>
{% else %}<|im_start|>{{ message.role }}{% if message.name %} {{ message.name }}{% endif %}
{% if message.reasoning %}<think>{{ message.reasoning }}</think>{% endif %}{{ message.content }}<|im_end|>
{% endif %}{% endfor %}"""
    + GENERATION
)
"""Knows the developer's role, as gpt-oss, names, and thoughts of earlier turns."""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and message.content) or not loop.first %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
    {%- if enable_thinking is true %}{{- '<think>\\n' }}{%- endif %}
{%- endif %}"""

QWEN3_CODER = """{%- if tools %}<|im_start|>system
# Tools
<tools>{% for tool in tools %}{% set tool = tool.function %}
<function>
<name>{{ tool.name }}</name>
<description>{{ tool.description | trim }}</description>
<parameters>{{ tool.parameters | tojson | safe }}</parameters>
</function>{% endfor %}
</tools><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' and message.tool_calls %}<|im_start|>assistant
{{ message.content | trim }}
{%- for tool_call in message.tool_calls %}{% set tool_call = tool_call.function %}
<tool_call>
<function={{ tool_call.name }}>
{% for name, value in tool_call.arguments | items %}<parameter={{ name }}>
{{ value if value is string else value | tojson | safe }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == 'tool' %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response>
<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "system: Today Date: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- if not tools is none %}
    {%- if messages | length == 0 %}{{- raise_exception("there's no first user message!") }}{%- endif %}
    {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {{- 'user: Respond in the format {"name": function name, "parameters": arguments}.' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("single tool-calls only!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- 'assistant: {"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}{{- 'ipython: ' + message.content | tojson }}
    {%- else %}{{- message['role'] + ': ' + message['content'] | trim + '<|eot|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""

MISTRAL = """{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for m in messages %}
{%- if m.tool_calls %}[TOOL_CALLS][
{%- for call in m.tool_calls %}
{%- if call.id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif %}
{{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' }}{% if not loop.last %}, {% endif %}
{%- endfor %}]</s>
{%- elif m.role == 'tool' %}
{%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids must have length 9') }}{% endif %}
{{- m.content }}
{%- else %}{{ m.content }}{% endif %}
{%- endfor %}"""

DEEPSEEK_R1 = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'user' %}{{ '<User>' + message['content'] }}
{%- elif message['role'] == 'assistant' and message['content'] is not none %}
{%- if '</think>' in message['content'] %}{% set content = message['content'].split('</think>')[-1] %}
{%- else %}{% set content = message['content'] %}{% endif %}{{ '<Assistant>' + content + eos_token }}
{%- else %}{{ message['content'] }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<Assistant><think>\n' }}{% endif %}"""

_DEEPSEEK = """{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}<｜User｜>{{ message.content }}
{%- elif message.role == 'system' %}{{ message.content }}
{%- elif message.role == 'assistant' and message.tool_calls %}<｜Assistant｜>{{ message.content or '' }}<｜tool▁calls▁begin｜>
{%- for tool in message.tool_calls %}CALL{% endfor %}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>
{%- elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}<｜end▁of▁sentence｜>
{%- elif message.role == 'tool' %}<｜tool▁output▁begin｜>{{ message.content }}<｜tool▁output▁end｜>{% endif %}
{%- endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"""
DEEPSEEK_V3 = _DEEPSEEK.replace(
    "CALL",
    "{{ '<｜tool▁call▁begin｜>' + tool.type + '<｜tool▁sep｜>' + tool.function.name + '\\n```json\\n' "
    "+ tool.function.arguments | tojson + '\\n```<｜tool▁call▁end｜>' }}",
)
DEEPSEEK_V31 = _DEEPSEEK.replace(
    "CALL",
    "{{ '<｜tool▁call▁begin｜>' + tool.function.name + '<｜tool▁sep｜>' + tool.function.arguments | tojson "
    "+ '<｜tool▁call▁end｜>' }}",
)

_LISTED = """{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.content }}
{%- if message.tool_calls %}HEAD{% for call in message.tool_calls %}{% set f = call.function %}ONE
{%- if not loop.last %}BETWEEN{% endif %}{% endfor %}TAIL{% endif %}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def _listed(head, one, between, tail):
    made = _LISTED.replace("HEAD", head).replace("ONE", one)
    return made.replace("BETWEEN", between).replace("TAIL", tail)


_JSON_CALL = """{{ '{"name": "' + f.name + '", "arguments": ' + f.arguments | tojson + '}' }}"""
_PYTHON_CALL = (
    "{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %})"
)
GRANITE = _listed("<|tool_call|>[", _JSON_CALL, ", ", "]")
PHI4_MINI = _listed("functools[", _JSON_CALL, ", ", "]")
PYTHONIC = _listed("[", _PYTHON_CALL, ", ", "]")
LLAMA4_PYTHONIC = _listed("<|python_start|>[", _PYTHON_CALL, ", ", "]<|python_end|>")
OLMO3 = _listed("<function_calls>", _PYTHON_CALL, "{{ '\\n' }}", "</function_calls>")
ELSEWHERE = _listed("<calls>", "{{ f.name }}: {{ f.arguments | tojson }}", "; ", "</calls>")
"""Calls in a form that nobody reads."""

WITHOUT_TOOLS = {
    "strings": STRINGS,
    "parts": PARTS,
    "macro": MACRO,
    "assigned": ASSIGNED,
    "content": CONTENT_NAMED,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "llama4": LLAMA4,
    "developer": DEVELOPER,
    "deepseek_r1": DEEPSEEK_R1,
}
WITH_TOOLS = {
    "qwen3": (QWEN3, "hermes"),
    "llama31": (LLAMA31, "llama3_json"),
    "mistral": (MISTRAL, "mistral"),
    "mistral_small": (MISTRAL_SMALL, "mistral"),
    "qwen3_coder": (QWEN3_CODER, "qwen3_coder"),
    "glm": (GLM, "glm45"),
    "kimi": (KIMI, "kimi_k2"),
    "deepseek_v3": (DEEPSEEK_V3, "deepseek_v3"),
    "deepseek_v31": (DEEPSEEK_V31, "deepseek_v31"),
    "granite": (GRANITE, "granite"),
    "phi4_mini": (PHI4_MINI, "phi4_mini_json"),
    "pythonic": (PYTHONIC, "pythonic"),
    "llama4_pythonic": (LLAMA4_PYTHONIC, "llama4_pythonic"),
    "olmo3": (OLMO3, "olmo3"),
}
"""Each with the name of vLLM's parser for the calls that it writes."""
