"""Looks at what opts in, before anything is tokenised or scheduled.

A wrong opt-in is answered with a 400 that names the field. A question about a handoff that comes as a POST is
answered here, too. vLLM puts it inside its own middleware: a request without a valid key has been refused by then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json
from starlette.responses import Response

from pdd_core.errors import InvalidOptIn
from pdd_core.kept_fields import check_kept_fields
from pdd_core.optin import (
    HANDOFF,
    INLINE,
    check_one_answer,
    check_tokenizer_digest,
    parse_opt_in,
)
from pdd_core.state_request import parse_state_request
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.inline_updates import OBJECTS, InlineUpdates

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pdd_vllm_plugin.handoff_service import HandoffService

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
MAX_PARSED_BYTES = 8 * 1024 * 1024
"""Parsing blocks the event loop (0.13 s for 10 MB); the recorder checks what is larger."""
_COUNTED = {"include_usage": True, "continuous_usage_stats": True}


class OptInCheck:
    """ASGI middleware. Reads the body once and replays it; parses it only if ``pdd_`` occurs in it."""

    def __init__(self, app: ASGIApp, service: HandoffService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http" or scope["method"] != "POST" or _path(scope) not in PATHS:
            await self._app(scope, receive, send)
            return
        path = _path(scope)
        messages, body = await _read(receive)
        found = await self._look(path, body) if b"pdd_" in body and len(body) <= MAX_PARSED_BYTES else None
        if isinstance(found, Response):
            await found(scope, receive, send)
            return
        if found is not None and not _counts(found):
            messages = [{"type": "http.request", "body": _counting(found)}]
        looked, replayed = found is not None, iter(messages)
        del messages, body, found  # the answer may take minutes, and vLLM has read them by then

        async def replay() -> Message:
            # After the stored messages the real channel: it is how vLLM learns that the client has left.
            return next(replayed, None) or await receive()

        if not looked:
            await self._app(scope, replay, send)
            return
        updates = InlineUpdates(send, path, hold_s=self._service.config.cancel_timeout_s)
        with updates.active():
            await self._app(scope, replay, updates)

    async def _look(self, path: str, body: bytes) -> Response | dict[str, Any] | None:
        """Return the answer if vLLM is not to see the request; else the request, if it asks for updates."""
        try:
            request = from_json(body)
        except ValueError:  # also for more than 200 levels, which Python's reader may not survive
            return None  # vLLM says what is wrong with it, or the recorder
        xargs = request.get("vllm_xargs") if isinstance(request, dict) else None
        if not isinstance(xargs, dict):
            return None
        try:
            question = parse_state_request(xargs) if path in OBJECTS else None
            if question is not None:
                answer = await self._service.answers.answer(question)
                answer.headers["cache-control"] = "no-store"  # gateways keep what equal POSTs are answered
                return answer
            check_tokenizer_digest(xargs, self._service.tokenizer)
            opt_in = parse_opt_in(xargs)
            if opt_in is None:
                return None
            _check_single(request)
            check_kept_fields(request)
            if opt_in.inline:
                _check_inline(path, request)
            self._service.store.check_free(opt_in.handoff_id)
        except InvalidOptIn as error:
            return openai_json.error(400, str(error), param=error.param, code=error.code)
        if self._service.store.full_of_running():
            return openai_json.error(
                429,
                "the server keeps as many running handoffs as additional_config.pdd.max_handoffs allows; "
                "retry later, or send the request without pdd_ fields",
                headers={"retry-after": "1"},
            )
        return request if opt_in.inline else None


def _counts(request: dict[str, Any]) -> bool:
    options = request.get("stream_options")
    # what is no object is vLLM's to refuse
    return options is not None and (not isinstance(options, dict) or options.keys() >= _COUNTED.keys())


def _counting(request: dict[str, Any]) -> bytes:
    """Have each chunk count its tokens: vllm-router 0.1.17 drops the field that asks for it, as others may."""
    return to_json({**request, "stream_options": {**_COUNTED, **(request.get("stream_options") or {})}})


def _check_inline(path: str, request: dict[str, Any]) -> None:
    if path not in OBJECTS:
        problem = f"goes with {' and '.join(OBJECTS)}, not with {path}"
    elif request.get("stream") is not True:
        problem = 'goes with "stream": true'
    else:
        return
    raise InvalidOptIn(f"{INLINE} {problem}", param=f"vllm_xargs.{INLINE}")


def _check_single(request: dict[str, Any]) -> None:
    check_one_answer(request.get("n"))
    if request.get("use_beam_search"):
        raise InvalidOptIn(f"{HANDOFF} does not go with beam search", param="use_beam_search")
    prompt = request.get("prompt")
    if isinstance(prompt, list) and len(prompt) != 1 and not all(isinstance(entry, int) for entry in prompt):
        raise InvalidOptIn(f"{HANDOFF} hands over one answer: send one prompt per request", param="prompt")


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    messages: list[Message] = []
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request" or not message.get("more_body", False):
            return messages, b"".join(message.get("body", b"") for message in messages)
