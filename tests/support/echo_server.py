"""Stands behind a gateway and tells what has come."""

import json
from http.server import BaseHTTPRequestHandler

GATEWAY_KEY = "sk-GATEWAY_KEY"
"""The gateway's, in the words of docs/gateways.md."""
EVENT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
SSE = (
    {**EVENT, "choices": [{"index": 0, "delta": {"content": "a"}, "token_ids": [7], "finish_reason": None}]},
    {**EVENT, "choices": [], "pdd": {"handoff_id": "x", "status": "running"}},
    {**EVENT, "choices": [{"index": 0, "delta": {}, "finish_reason": "length", "stop_reason": "pdd_handoff"}]},
)


class Echo(BaseHTTPRequestHandler):
    """Answers with what has come; a chat's POST with `SSE`."""

    def _echo(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        seen = {"path": self.path, "headers": {name.lower(): value for name, value in self.headers.items()}}
        chat = self.command == "POST" and self.path.endswith("/chat/completions")
        answer = "".join(f"data: {json.dumps(one)}\n\n" for one in SSE) + "data: [DONE]\n\n"
        data = (answer if chat else json.dumps({**seen, "body": body.decode()})).encode()
        self.server.seen.append(seen)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if chat else "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("set-cookie", "llm-d-session=one")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_DELETE = _echo  # noqa: N815

    def log_message(self, *_):
        pass
