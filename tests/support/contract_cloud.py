"""A cloud that knows the plugin's routes, its questions by POST and its updates inside a stream, and no model.

Its answer to any prompt is the prompt's last id plus one, plus two and so on. Start several for replicas: each has
the states of its own handoffs only.
"""

import asyncio
import json
import socket
import threading
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from pdd_core.errors import InvalidOptIn
from pdd_core.fingerprint import PIECE, fingerprint
from pdd_core.handoff import SCHEMA_VERSION
from pdd_core.optin import parse_opt_in
from pdd_core.state_request import StateRequest, Verb, parse_state_request

TABLE = [f"<{token}>".encode() for token in range(1000)]
FEATURES = ("decode_budget", "budget_policies", "handoff_state", "refinement", "inline", "by_post")


def cloud_info(features=FEATURES):
    return {
        "schema_version": SCHEMA_VERSION,
        "plugin_version": "0.1.0",
        "engine": "vllm 0.32.0",
        "model": "m",
        "max_model_len": 2048,
        "tokenizer": json.loads(fingerprint(TABLE, special_ids=(999,), eos_ids=(999,)).model_dump_json()),
        "features": list(features),
        "refinement": "attention",
        "limits": {"max_decode_budget": 256, "max_handoffs": 64, "ttl_s": 60.0, "cancel_timeout_s": 3.0},
    }


def refinement_of(prompt, opt_in):
    kept = [index for index in range(len(prompt)) if index % 2 == 0 or index == len(prompt) - 1]
    kept = sorted({*kept, *(index for span in opt_in.protect for index in range(*span))})
    return {
        "kind": "refined",
        "method": "attention",
        "ratio": opt_in.refine_ratio,
        "kept_indices": kept,
        "kept_token_ids": [prompt[index] for index in kept],
        "protected": opt_in.protect,
        "window": 4,
        "layers": [1],
    }


@dataclass
class ContractCloud:
    """Serves on a free port of 127.0.0.1, on a thread of its own. A context manager."""

    key: str | None = None
    features: tuple = FEATURES
    cookies: tuple = ()
    """What each answer sets."""
    updates: bool = True
    """Whether a stream carries the updates that it was asked for."""
    seen: list = field(default_factory=list)
    """Per request: method, path, session, cookies, questions and opt-in fields."""
    states: dict = field(default_factory=dict)
    url: str = ""

    def __enter__(self):
        routes = [Route("/{path:path}", self._handle, methods=["GET", "POST", "DELETE"])]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, ws="none", timeout_graceful_shutdown=1)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="cloud", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)

    async def _handle(self, request):
        body = json.loads(await request.body() or b"{}")
        xargs = body.get("vllm_xargs", {})
        path = request.url.path
        if path == "/health":
            return JSONResponse({})
        self.seen.append(
            {
                "method": request.method,
                "path": path,
                "session": request.headers.get("x-session-id"),
                "cookies": request.cookies,
                "xargs": xargs,
            }
        )
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        response = self._answer(request, path, body, xargs)
        for line in self.cookies:
            response.headers.append("set-cookie", line)
        return response

    def _answer(self, request, path, body, xargs):
        if path == "/v1/models":
            return JSONResponse({"object": "list", "data": [{"id": "m"}]})
        if path == "/v1/completions":
            try:
                question = parse_state_request(xargs) if "by_post" in self.features else None
                if question is not None:
                    return self._state(question)
                return self._stream(body, parse_opt_in(xargs))
            except InvalidOptIn as error:
                return JSONResponse({"error": {"message": str(error), "code": 400}}, 400)
        query, name = request.query_params, path.rpartition("/")[2]
        match request.method, path.removeprefix("/v1/pdd/").partition("/")[0]:
            case "GET", "info":
                return self._state(StateRequest(Verb.INFO))
            case "GET", "vocabulary":
                return self._state(StateRequest(Verb.VOCABULARY, start=int(query.get("start", 0))))
            case "GET", "handoffs":
                return self._state(StateRequest(Verb.READ, name))
            case "DELETE", "handoffs":
                return self._state(StateRequest(Verb.CANCEL, name))
        return JSONResponse({"detail": "Not Found"}, 404)

    def _state(self, question):
        match question.verb:
            case Verb.INFO:
                return JSONResponse(cloud_info(self.features))
            case Verb.VOCABULARY:
                piece = TABLE[question.start : question.start + PIECE]
                return JSONResponse({"start": question.start, "tokens": [token.hex() for token in piece]})
        if question.id not in self.states:
            return JSONResponse({"error": {"message": "no such handoff", "code": 404}}, 404)
        if question.verb is Verb.CANCEL:
            del self.states[question.id]
            return JSONResponse({"id": question.id, "confirmed": True})
        return JSONResponse(self.states[question.id])

    def _stream(self, body, opt_in):
        prompt, count = body["prompt"], body["max_tokens"]
        budget = count if opt_in is None else min(opt_in.decode_budget or count, count)
        ids = range(prompt[-1] + 1, prompt[-1] + 1 + budget)
        refinement = {"kind": "none", "reason": "not_requested", "message": "not requested"}
        if opt_in is not None:
            if opt_in.refine_ratio is not None:
                refinement = refinement_of(prompt, opt_in)
            self.states[opt_in.handoff_id] = {
                "handoff_id": opt_in.handoff_id,
                "request_id": "cmpl-1",
                "model": "m",
                "tokenizer": "digest",
                "created": 1.0,
                "expires": 2.0,
                "status": "handed_off",
                "prompt_token_ids": prompt,
                "output_token_ids": list(ids),
                "sampling_params": {},
                "refinement": refinement,
            }

        def event(**fields):
            head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": []}
            return f"data: {json.dumps({**head, **fields})}\n\n"

        def update(status="running", **fields):
            told = {"handoff_id": opt_in.handoff_id, "request_id": "cmpl-1", "status": status, **fields}
            return event(pdd=told) if opt_in is not None and opt_in.inline and self.updates else ""

        async def events():
            made = {"tokens": budget, "set_by": "client"}
            for number, token in enumerate(ids, 1):
                last = number == len(ids)
                choice = {
                    "index": 0,
                    "text": f"<{token}>",
                    "token_ids": [token],
                    "finish_reason": "length" if last else None,
                    "stop_reason": "pdd_handoff" if last and budget < count else None,
                }
                usage = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": 1 + number}
                yield event(choices=[choice], usage=usage)
                if number == 1:
                    yield update(decode_budget=made)
                await asyncio.sleep(0.001)
            if refinement["kind"] == "refined":
                yield update(decode_budget=made, refinement=refinement)
            yield update("handed_off", finish_reason="length", decode_budget=made)
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")
