"""``/v1/responses``: OpenAI's newer API for one turn, without a memory.

`routes` returns its routes. https://platform.openai.com/docs/api-reference/responses
"""

from pdd_llamacpp_adapter.server.responses.response_routes import routes

__all__ = ["routes"]
