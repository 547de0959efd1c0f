"""OpenAI's `response` object.

https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.reasoning import CLOSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.timeline import Timeline
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import Finished
    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.outcome import Outcome


class ResponseShape:
    """Makes the objects of one response, which differ in how far it has come.

    Args:
        call: the request it answers.
        echoed: the fields that repeat the request.
    """

    def __init__(self, call: Call, echoed: Json) -> None:
        self._head: Json = {
            "id": call.answer_id,
            "object": "response",
            "created_at": call.created,
            "model": call.model,
            **echoed,
            "background": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
        }

    def begun(self) -> Json:
        """Return the response as it is before its first item."""
        return self._with("in_progress", ())

    def finished(self, finished: Finished, output: Sequence[Json], *, thought: bool) -> Json:
        """Return the response at its end; `thought` says whether the model thought before it spoke."""
        cut = finished.finish_reason == "length"
        made = self._with("incomplete" if cut else "completed", output)
        made["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        made["usage"] = _usage(finished.outcome, thought=thought)
        made["pdd"] = finished.outcome.summary()
        return made

    def failed(self, error: ErrorObject, output: Sequence[Json]) -> Json:
        """Return the response that nobody could go on with."""
        made = self._with("failed", output)
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        made["error"] = {"code": code, "message": error.message}
        return made

    def _with(self, status: str, output: Sequence[Json]) -> Json:
        rest: Json = {"error": None, "incomplete_details": None, "usage": None}
        return {**self._head, "status": status, "output": list(output), **rest}


def _usage(outcome: Outcome, *, thought: bool) -> Json:
    completion = len(outcome.timeline.tokens)
    return {
        "input_tokens": outcome.prompt_tokens,
        "input_tokens_details": {"cached_tokens": outcome.reused_tokens, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens(outcome.timeline) if thought else 0},
        "total_tokens": outcome.prompt_tokens + completion,
    }


def reasoning_tokens(timeline: Timeline) -> int:
    """Return how many tokens an answer with thoughts took until they were closed, tags included."""
    length = 0
    end = timeline.text.find(CLOSES)
    for index, token in enumerate(timeline.tokens):
        length += len(token.text)
        if end >= 0 and end + len(CLOSES) <= length:
            return index + 1
    return len(timeline.tokens)
