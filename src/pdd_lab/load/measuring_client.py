"""A client that measures: one server, many requests at once, the arrival of every token."""

from __future__ import annotations

import json
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import anyio
import openai

from pdd_core.env import Env
from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable, PDDError
from pdd_core.http_client import new_async_client
from pdd_llamacpp_adapter.cloud.cloud_errors import translated

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pdd_lab.load.reply import Reply

_NO_KEY = "EMPTY"
_CONNECT_TIMEOUT = 10.0
_FORCED: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of itself."""

    model: str
    max_model_len: int | None
    """Tokens of prompt and answer together; None where it does not tell."""
    info: dict[str, Any] | None
    """``/v1/pdd/info`` of a cloud with the plugin."""
    device: bool
    """Whether it is a `pdd-device serve`."""

    def holds(self, tokens: int) -> bool:
        """Whether a prompt and an answer of `tokens` together can be served."""
        return self.max_model_len is None or tokens <= self.max_model_len


class LoadClient:
    """One server. An async context manager.

    Args:
        base_url: as for any OpenAI client, ``http://host:port/v1``.
        api_key: the server's key; default PDD_CLOUD_API_KEY.
        model: the name to ask for; default what the server serves.
        timeout: seconds without a byte after which a request has failed.
    """

    def __init__(
        self, base_url: str, *, api_key: str | None = None, model: str | None = None, timeout: float = 600.0
    ) -> None:
        if api_key is None and (key := Env().cloud_api_key) is not None:
            api_key = key.get_secret_value()
        self._client = new_async_client(
            base_url,
            api_key=api_key or _NO_KEY,
            timeout=openai.Timeout(timeout, connect=_CONNECT_TIMEOUT),
            max_retries=0,  # a second try would be a load, and a latency, of its own
        )
        self._root = base_url.rstrip("/").removesuffix("/v1")
        self._model = model
        self.forces = True
        """Whether the server makes answers as long as they are asked for."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._client.close()

    async def served(self) -> ServedModel:
        """Ask the server what it is, and take the model's name from it.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer, or no model.
        """
        models = await self._get(f"{self._root}/v1/models")
        found = models.get("data") if isinstance(models, dict) else None
        chosen = next((one for one in found or () if self._model in (None, one.get("id"))), None)
        if chosen is None:
            raise CloudRefused(f"the server at {self._root} does not serve {self._model or 'any model'}")
        self._model = str(chosen["id"])
        try:
            info = await self._get(f"{self._root}/v1/pdd/info")
        except CloudRefused:
            info = None
        length = chosen.get("max_model_len")
        return ServedModel(self._model, length, info, device=chosen.get("owned_by") == "pdd-device")

    async def metrics(self) -> str:
        """Return ``/metrics``, empty where there is none."""
        try:
            response = await self._client.get(f"{self._root}/metrics", cast_to=str)
        except openai.OpenAIError:
            return ""
        return response

    async def round_trip(self) -> float:
        """Return the seconds of one GET of ``/health``.

        Raises:
            CloudUnreachable, CloudRefused: as `served`.
        """
        begun = time.monotonic()
        try:
            await self._client.get(f"{self._root}/health", cast_to=str)
        except openai.OpenAIError as error:
            raise translated(error) from error
        return time.monotonic() - begun

    async def _get(self, url: str) -> Any:
        try:
            return await self._client.get(url, cast_to=object)
        except openai.OpenAIError as error:
            raise translated(error) from error

    async def probe(self, prompt: Sequence[int]) -> None:
        """Make one answer of two tokens, and find out whether the server takes what forces a length.

        Raises:
            CloudUnreachable, CloudRefused, CloudLost: the server does not answer such a request.
        """
        try:
            await self._drain(prompt)
        except CloudRefused as error:
            if not self.forces or error.status not in (400, 422):
                raise
            self.forces = False
            await self._drain(prompt)

    async def _drain(self, prompt: Sequence[int]) -> None:
        async with aclosing(self._events(prompt, max_tokens=2)) as events:
            async for _ in events:
                pass

    async def ask(self, reply: Reply, prompt: Sequence[int], *, max_tokens: int) -> None:
        """Send a request now, and write into `reply` what comes. What goes wrong is written there too.

        Cancelling the call closes the connection: the server stops.
        """
        reply.sent = time.monotonic()
        try:
            async with aclosing(self._events(prompt, max_tokens=max_tokens)) as events:
                async for event in events:
                    _take(reply, event, time.monotonic())
            if reply.finish_reason is None:
                raise CloudLost("the stream ended without a finish reason")
            reply.finished = time.monotonic()
        except PDDError as error:
            reply.error, reply.detail = _short(error), str(error)

    async def _events(self, prompt: Sequence[int], *, max_tokens: int) -> AsyncGenerator[dict[str, Any]]:
        """Yield the events of one streamed completion. openai's own parser takes ten times as long for each."""
        forced = {**_FORCED, "min_tokens": max_tokens} if self.forces else {}
        request = self._client.completions.with_streaming_response.create(
            model=self._model or "",
            prompt=list(prompt),
            max_tokens=max_tokens,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=forced,
        )
        try:
            async with request as response:
                async for line in response.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    yield _event(data)
        except openai.OpenAIError as error:
            raise translated(error) from error
        except PDDError:
            raise
        except Exception as error:  # the transport's own errors, which depend on openai's version
            raise CloudLost(f"the stream broke off: {type(error).__name__}") from error


def _event(data: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    if (error := event.get("error")) is not None:
        told = error if isinstance(error, dict) else {"message": str(error)}
        code = told.get("code")
        raise CloudRefused(
            str(told.get("message")), status=code if isinstance(code, int) else None, code=told.get("type")
        )
    return event


def _take(reply: Reply, event: dict[str, Any], now: float) -> None:
    for choice in event.get("choices") or ():
        ids = choice.get("token_ids")
        count = len(ids) if ids is not None else int(bool(choice.get("text")))
        reply.token_times += [now] * count
        reply.finish_reason = choice.get("finish_reason") or reply.finish_reason
    if (usage := event.get("usage")) is not None:
        reply.usage_tokens = usage.get("completion_tokens")
    if (told := event.get("pdd")) is not None:
        reply.pdd = told


def _short(error: PDDError) -> str:
    match error:
        case CloudUnreachable() if isinstance(error.__cause__, openai.APITimeoutError):
            return "timeout"
        case CloudRefused(status=int(status)):
            return f"HTTP {status}"
        case CloudRefused(code=str(code)):
            return code
        case CloudUnreachable():
            return "no connection"
        case _:
            return "broke off" if isinstance(error, CloudLost) else type(error).__name__
