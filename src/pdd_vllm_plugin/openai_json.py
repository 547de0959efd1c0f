"""HTTP answers in OpenAI's shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from pdd_core.handoff import HandoffState
    from pdd_core.kv.geometry import NoKV

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
}
AMBIGUOUS = "several requests were sent with this X-Request-Id: use the handoff id"


def error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    kv: NoKV | None = None,
) -> JSONResponse:
    """An OpenAI error object, as vLLM's: `code` is the status unless given. Beside it, why there are no cells."""
    body = {"message": message, "type": _TYPES[status], "param": param, "code": code or status}
    more = {} if kv is None else {"kv": kv.model_dump()}
    return JSONResponse({"error": body, **more}, status_code=status, headers=headers)


def chat_completion(state: HandoffState, text: str) -> dict[str, Any]:
    """The whole state as a ChatCompletion with the partial message `text`, and a `pdd` field.

    https://platform.openai.com/docs/api-reference/chat/get
    """
    return {
        "id": state.request_id,
        "object": "chat.completion",
        "created": int(state.created),
        "model": state.model,
        "choices": [
            {
                "index": 0,
                "finish_reason": state.finish_reason,
                "stop_reason": state.stop_reason,
                "logprobs": None,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "token_ids": state.output_token_ids,
            }
        ],
        "usage": {
            "prompt_tokens": len(state.prompt_token_ids),
            "completion_tokens": len(state.output_token_ids),
            "total_tokens": len(state.prompt_token_ids) + len(state.output_token_ids),
        },
        "pdd": state.model_dump(mode="json", exclude={"output_token_ids", "output_logprobs"}),
    }
