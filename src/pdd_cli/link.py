"""A link between device and cloud that is as slow as one wants: a TCP proxy on this machine.

Payload passes at the link's goodput, and each byte is underway for half a round trip. Each direction has a token
bucket that all connections share. Who sends faster is made to wait, as on a real link. Loss, slow start and
changing conditions are not emulated.
"""

from __future__ import annotations

import asyncio
import re
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

RTT_S = 0.02
"""Round trip of a link that names none."""
BUCKET_S = 0.01
"""How long a link may have been idle and make up for it: less than this, and a late timer would cost goodput."""
_SLICE_S = 0.005
_SLICE_BYTES = (1024, 256 * 1024)
_UNDERWAY = 64
"""Slices between both ends, besides those that fit into the delay."""
_FORM = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(k|m|g)bit(?:/(\d{1,5}(?:\.\d{1,3})?)ms)?", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
LEAST_BIT_S, MOST_BIT_S = 1e4, 1e11
MOST_RTT_S = 10.0


@dataclass(frozen=True, slots=True)
class Link:
    """How fast a link is."""

    bit_s: float
    """Goodput of either direction: bits of payload per second."""
    rtt_s: float = RTT_S
    """Round trip, in seconds."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``100mbit``, or ``100mbit/30ms`` with the round trip.

        Raises:
            ConfigurationError: `text` is no such link, or one that is too slow or too fast to emulate.
        """
        if (match := _FORM.fullmatch(text.strip())) is None:
            raise ConfigurationError(f"{text!r} is no link: write 100mbit, or 100mbit/30ms with its round trip")
        number, unit, rtt_ms = match.groups()
        link = cls(float(number) * _UNITS[unit.lower()], RTT_S if rtt_ms is None else float(rtt_ms) / 1000)
        if not LEAST_BIT_S <= link.bit_s <= MOST_BIT_S or link.rtt_s > MOST_RTT_S:
            bounds = f"10kbit to 100gbit, and a round trip of {MOST_RTT_S:g} s at most"
            raise ConfigurationError(f"{text!r} is no link that can be emulated: {bounds}")
        return link

    @property
    def bytes_per_s(self) -> float:
        """Goodput in bytes."""
        return self.bit_s / 8

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.bit_s / 1e6:g} Mbit/s, round trip {self.rtt_s * 1000:g} ms"


class TokenBucket:
    """One direction of a link. All that goes this way passes one after the other."""

    def __init__(self, bytes_per_s: float, clock: Callable[[], float]) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._passed_at = -float("inf")
        least, most = _SLICE_BYTES
        self.slice = int(min(most, max(least, bytes_per_s * _SLICE_S)))
        """Bytes to send at a time, so that connections take turns."""

    def passed_at(self, size: int) -> float:
        """Return when `size` further bytes will have passed, by the clock; a time in the past is now."""
        self._passed_at = max(self._passed_at, self._clock() - BUCKET_S) + size / self._bytes_per_s
        return self._passed_at


@asynccontextmanager
async def emulated(link: Link, url: str) -> AsyncIterator[str]:
    """Yield the URL by which the server at `url` is reached over `link`, until the block ends.

    Raises:
        ConfigurationError: `url` is not that of plain HTTP.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise ConfigurationError(f"a link to {url} cannot be emulated: give an http:// address, or --link none")
    connections = _Connections(link, (parts.hostname, parts.port or 80))
    listener = socket.create_server(("127.0.0.1", 0))
    # what lies in a socket's buffer has passed the link for its sender
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, connections.window)
    server = await asyncio.start_server(connections.accept, sock=listener, limit=connections.up.slice)
    try:
        yield parts._replace(netloc=f"127.0.0.1:{listener.getsockname()[1]}").geturl()
    finally:
        server.close()
        await connections.end()


class _Connections:
    def __init__(self, link: Link, server: tuple[str, int]) -> None:
        clock = asyncio.get_running_loop().time
        self.up, self.down = TokenBucket(link.bytes_per_s, clock), TokenBucket(link.bytes_per_s, clock)
        self.window = max(2 * self.down.slice, int(link.bytes_per_s * link.rtt_s))
        """Bytes that a receiver takes in before they have passed: about what fits into the link."""
        self._link = link
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Cut what is still connected."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await asyncio.sleep(self._link.rtt_s)  # the handshake
            theirs, to_them = await self._connect()
            writers.append(to_them)
            async with asyncio.TaskGroup() as both:
                both.create_task(carry(reader, to_them, self.up, delay=self._link.rtt_s / 2))
                both.create_task(carry(theirs, writer, self.down, delay=self._link.rtt_s / 2))
        except* OSError:
            pass  # either end hung up: so does the other
        finally:
            for one in writers:
                one.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        [(family, kind, protocol, _, address), *_] = await loop.getaddrinfo(*self._server, type=socket.SOCK_STREAM)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.window)
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            return await asyncio.open_connection(sock=sock, limit=self.down.slice)
        except BaseException:
            sock.close()
            raise


async def carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bucket: TokenBucket, *, delay: float
) -> None:
    """Bring all that `reader` has to `writer`: through `bucket`, then `delay` seconds later. Ends with its end."""
    underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDERWAY + int(delay / _SLICE_S))
    async with asyncio.TaskGroup() as both:
        both.create_task(_deliver(underway, writer))
        while True:
            data = await reader.read(bucket.slice)
            came_at = asyncio.get_running_loop().time()
            passed_at = bucket.passed_at(len(data))
            await _until(passed_at)
            await underway.put((max(passed_at, came_at) + delay, data))
            if not data:
                return


async def _deliver(underway: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    while True:
        at, data = await underway.get()
        await _until(at)
        if not data:
            with suppress(OSError):
                writer.write_eof()
            return
        writer.write(data)
        await writer.drain()


async def _until(at: float) -> None:
    await asyncio.sleep(at - asyncio.get_running_loop().time())
