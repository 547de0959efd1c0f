"""The streams that can be read again, by the name of their conversation.

As in llama.cpp's server (``tools/server/server-stream.cpp``), a conversation has one stream at most, places in it
are counted in bytes, and the oldest bytes are dropped first.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError, DeviceBusy
from pdd_llamacpp_adapter.server.streams.byte_log import ByteLog
from pdd_llamacpp_adapter.server.wire.failures import CLIENT_GONE, DELETED, INVALID, ErrorObject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPLACED = ErrorObject(
    409, "The conversation has begun another answer in the place of this one", INVALID, code="stream_replaced"
)
UNREAD = ErrorObject(CLIENT_GONE, "Nobody read the answer for too long", INVALID, code="stream_unread")
_ADVICE = 5.0
"""Seconds after which to ask again where all streams are at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """How many streams are kept, how much of each, and for how long.

    Raises:
        ConfigurationError: a value that cannot work; the message names the setting.
    """

    count: int = 16
    """Streams at a time; with 0, none."""
    size: int = 4 * 2**20
    """The newest bytes of each."""
    ttl: float = 300.0
    """Seconds without a reader, after which an answer is given up, and a stream that has ended is forgotten."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ConfigurationError("max_streams must be at least 0")
        if self.size < 1:
            raise ConfigurationError("stream_mib must be at least 1")
        if not self.ttl > 0:
            raise ConfigurationError("stream_ttl_s must be a positive number of seconds")


class KeptStream:
    """One answer's stream. `stop` ends the answer with an error, unless it has ended."""

    def __init__(
        self,
        conversation_id: str,
        stop: Callable[[ErrorObject], None],
        limits: StreamLimits,
        clock: Callable[[], float],
    ) -> None:
        self.conversation_id = conversation_id
        self.log = ByteLog(limits.size)
        self.started_at = int(time.time())
        """Unix seconds."""
        self.completed_at = 0
        """Unix seconds; 0 while it goes on."""
        self._stop = stop
        self._ttl = self._patience = limits.ttl
        self._clock = clock
        self._readers = 0
        self._unread_since = clock()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Count as a reader."""
        self._readers += 1
        self._patience = self._ttl
        try:
            yield
        finally:
            self._readers -= 1
            self._unread_since = self._clock()

    def expect_reader(self, within: float) -> None:
        """Wait for the next reader no longer than `within` seconds, if nobody reads it."""
        self._patience = min(within, self._ttl)

    @property
    def is_forgotten(self) -> bool:
        """Whether nobody has read it for so long that nobody is expected to."""
        return not self._readers and self._clock() - self._unread_since >= self._patience

    def append(self, data: bytes) -> None:
        """Add `data`, and give the answer up if nobody has read it for long. Keep-alives are added too."""
        self.log.append(data)
        if self.is_forgotten:
            self._stop(UNREAD)

    def end(self) -> None:
        """Say that this is all."""
        if not self.log.closed:
            self.completed_at = int(time.time())
            # from now on, as long as a client may take that was about to come back
            self._unread_since = self._clock()
            self._stop = _nothing_to_stop  # the answer itself need not be kept
            self.log.close()

    def stop(self, why: ErrorObject) -> None:
        """End its answer, if that has not ended."""
        self._stop(why)


def _nothing_to_stop(_: ErrorObject) -> None:
    pass


class KeptStreams:
    """All streams, bounded in number, size and age. Memory only: nothing outlives the process.

    Args:
        limits: the bounds.
        clock: seconds.
    """

    def __init__(self, limits: StreamLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self._clock = clock
        self._streams: dict[str, KeptStream] = {}

    def begin(
        self, conversation_id: str, stop: Callable[[ErrorObject], None]
    ) -> tuple[KeptStream, KeptStream | None]:
        """Return a new stream, and the one whose place it takes, whose answer has been told to stop.

        Raises:
            DeviceBusy: there are as many streams as may be, and all their answers are still made.
        """
        replaced = self._streams.get(conversation_id)
        if replaced is None:
            self._make_room()
        else:
            self._forget(replaced)
            replaced.stop(REPLACED)
        stream = self._streams[conversation_id] = KeptStream(conversation_id, stop, self.limits, self._clock)
        return stream, replaced

    def get(self, conversation_id: str) -> KeptStream | None:
        """Return the conversation's stream, or None."""
        self._drop_old()
        return self._streams.get(conversation_id)

    def all(self) -> list[KeptStream]:
        """Return the streams, the oldest first."""
        self._drop_old()
        return list(self._streams.values())

    def remove(self, conversation_id: str) -> None:
        """Forget the conversation's stream, if there is one, and stop its answer."""
        stream = self._streams.get(conversation_id)
        if stream is not None:
            self._forget(stream)
            stream.stop(DELETED)

    def withdraw(self, stream: KeptStream) -> None:
        """Forget `stream`, whose request was refused."""
        if self._streams.get(stream.conversation_id) is stream:
            self._forget(stream)

    def _forget(self, stream: KeptStream) -> None:
        del self._streams[stream.conversation_id]

    def _drop_old(self) -> None:
        for stream in self._ended():
            if stream.is_forgotten:
                self._forget(stream)

    def _make_room(self) -> None:
        self._drop_old()
        if len(self._streams) < self.limits.count:
            return
        ended = self._ended()
        if not ended:
            busy = f"{len(self._streams)} answers are made whose streams are kept: try again later"
            raise DeviceBusy(busy, retry_after=_ADVICE)
        self._forget(min(ended, key=lambda stream: stream.completed_at))

    def _ended(self) -> list[KeptStream]:
        return [stream for stream in self._streams.values() if stream.log.closed]
