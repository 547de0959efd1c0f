"""What the server lets in, how much of it, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST = {
    "max_running": 1,
    "max_queue": 0,
    "max_connections": 1,
    "max_head_bytes": 1,
    "max_headers": 1,
    "max_body_bytes": 1,
    "stored_answers": 0,
    "stored_bytes": 0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What the server lets in and how long it waits; times in seconds.

    Raises:
        ConfigurationError: a value that cannot work; the message names the setting.
    """

    api_key: str | None = field(default=None, repr=False)
    """Clients must send ``Authorization: Bearer KEY``; None lets everyone in."""
    allow_hosts: Sequence[str] = ()
    """Names in a request's ``Host`` that are answered without a key, besides those of the loopback address and the
    address that the request came to. A web page that has its own name resolve to this machine (DNS rebinding)
    could otherwise talk to a server without a key."""
    on_loopback: bool = False
    """Only this machine reaches the server."""
    allow_origins: Sequence[str] = ()
    """Origins of web pages that may use the server (CORS), besides its own; ``*`` lets all in. Without a key, what
    other pages send is refused."""
    ui: bool = True
    """The server has pages for people, which need no key themselves."""
    max_running: int = 1
    """Answers at a time. One llama.cpp context makes one; more is for a cloud without a device."""
    max_queue: int = 8
    """Answers that may wait besides the running ones; the next one is refused with 429."""
    keep_alive: float = 10.0
    """A stream with nothing to say says a comment this often. Also the longest wait before its headers go out."""
    send_timeout: float = 60.0
    """A client that takes nothing for this long counts as gone."""
    max_connections: int = 256
    """Connections at a time; clients of further ones are refused with 503."""
    max_head_bytes: int = 32 * 2**10
    """Of a request's head: method, path and headers. A browser sends the cookies of all servers of this host."""
    max_headers: int = 100
    max_body_bytes: int = 8 * 2**20
    stored_answers: int = 64
    """Chat completions that can be retrieved, counted from the newest."""
    stored_bytes: int = 64 * 2**20
    """Of these together, as JSON. One that is larger alone cannot be retrieved."""
    stored_ttl: float = 1800.0
    """A chat completion can be retrieved for this long after its end."""
    streams: StreamLimits = field(default_factory=StreamLimits)
    """Which streams a client can come back to."""

    @property
    def lists_streams(self) -> bool:
        """Whether a client may see the streams of all: it has the key they all have, or is on this machine."""
        return self.api_key is not None or self.on_loopback

    def __post_init__(self) -> None:
        if self.api_key == "":
            raise ConfigurationError("api_key must not be empty: leave it out to let everyone in")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} must be at least {least}")
        for name in ("keep_alive", "send_timeout", "stored_ttl"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be a positive number of seconds")
