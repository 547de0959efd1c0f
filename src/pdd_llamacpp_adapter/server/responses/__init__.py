"""``/v1/responses``: OpenAI's newer API for one turn, without a memory.

https://platform.openai.com/docs/api-reference/responses
"""
