"""HTTP answers in OpenAI's shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from pdd_core.handoff import HandoffState
    from pdd_vllm_plugin.handoff_record import HandoffRecord

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
    status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An OpenAI error object, with the same `type` names that vLLM uses."""
    body = {"message": message, "type": _TYPES[status], "param": param, "code": status}
    return JSONResponse({"error": body}, status_code=status, headers=headers)


def chat_completion(record: HandoffRecord, state: HandoffState) -> dict[str, Any]:
    """The state as a ChatCompletion with the partial message and a `pdd` field.

    https://platform.openai.com/docs/api-reference/chat/get
    """
    return {
        "id": record.completion_id,
        "object": "chat.completion",
        "created": int(record.created),
        "model": record.model,
        "choices": [
            {
                "index": 0,
                "finish_reason": record.finish_reason,
                "stop_reason": record.stop_reason,
                "logprobs": None,
                "message": {"role": "assistant", "content": "".join(record.text), "refusal": None},
                "token_ids": state.output_token_ids,
            }
        ],
        "usage": {
            "prompt_tokens": len(record.prompt_token_ids),
            "completion_tokens": len(record.output_token_ids),
            "total_tokens": record.num_tokens,
        },
        "pdd": state.model_dump(mode="json", exclude={"output_token_ids", "output_logprobs"}),
    }
