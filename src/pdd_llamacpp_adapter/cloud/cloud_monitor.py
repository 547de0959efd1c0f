"""Whether the cloud is there: connects, notices when it is gone, and reconnects."""

from __future__ import annotations

import contextlib
import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable, PDDError, named
from pdd_llamacpp_adapter.cloud.cloud_route import Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.cloud.tokenizer_check import DeviceVocabulary

logger = logging.getLogger(__name__)

_FIRST_DELAY_S = 1.0
_LONGEST_DELAY_S = 30.0
_LOOK_WITHIN_S = 10.0
"""A cloud that takes longer to say what it is counts as unreachable."""
_LOOK_AGAIN_S = 60.0
"""A connected cloud may have been restarted with another model."""

_LONGEST_TOLD_S = 3600.0
"""However long a cloud says that it wants to be left alone."""
_ANOTHER = frozenset({400, 401, 403, 404})
"""HTTP statuses of a cloud that may have been restarted with another model, another vocabulary or another key."""


class Connection(StrEnum):
    """What is known of the cloud."""

    NONE = "none"
    """The device answers alone, by configuration."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    DOWN = "down"
    """It cannot be reached, refuses, or has another vocabulary; it is tried again."""


class CloudMonitor:
    """Keeps the connection to one cloud. `client` None: there is none.

    `on_round_trip` is called with the seconds that one took.
    """

    def __init__(
        self,
        client: CloudClient | None,
        vocab: DeviceVocabulary,
        *,
        on_round_trip: Callable[[float], object] | None = None,
    ) -> None:
        self._client = client
        self._on_round_trip = on_round_trip
        self._vocab = vocab
        self._look_now = anyio.Event()
        self.connection = Connection.NONE if client is None else Connection.CONNECTING
        self.error: PDDError | None = None
        """Why the cloud is down."""

    @property
    def client(self) -> CloudClient | None:
        """The cloud to ask; None while there is none that would answer."""
        return None if self.connection is Connection.DOWN else self._client

    @property
    def info(self) -> CloudInfo | None:
        """What the connected cloud told about itself."""
        if self._client is None or self.connection is not Connection.CONNECTED:
            return None
        return self._client.info

    @property
    def told(self) -> CloudInfo | None:
        """What the cloud told when it was last connected: its model's ways hold for answers without it, too."""
        return None if self._client is None else self._client.info

    @property
    def way(self) -> Way | None:
        """How the cloud is asked; None before that was found."""
        return None if self._client is None else self._client.route.way

    async def run(self) -> None:
        """Watch the cloud until cancelled; returns at once where there is none."""
        delay = _FIRST_DELAY_S
        while self._client is not None:
            await self._look(self._client)
            down = self.connection is Connection.DOWN
            self._look_now = anyio.Event()
            with anyio.move_on_after(delay if down else _LOOK_AGAIN_S):
                await self._look_now.wait()
            if isinstance(self.error, CloudRefused) and self.error.retry_after is not None:
                await anyio.sleep(min(self.error.retry_after, _LONGEST_TOLD_S))
            delay = min(_LONGEST_DELAY_S, delay * 2) if down else _FIRST_DELAY_S

    async def _look(self, client: CloudClient) -> None:
        before = self.connection
        try:
            info = await self._connected(client)
        except Exception as error:  # whatever a cloud says, the device goes on serving
            is_ours = isinstance(error, PDDError)
            self.connection = Connection.DOWN
            self.error = error if isinstance(error, PDDError) else CloudRefused(type(error).__name__)
            if before is not Connection.DOWN:
                logger.warning("the cloud is not available: %s", named(self.error), exc_info=not is_ours)
        else:
            self.connection, self.error = Connection.CONNECTED, None
            if before is not Connection.CONNECTED:
                how = "; a router is between, so it is asked by POST" if self.way is Way.POST else ""
                logger.info("connected to %s, model %s%s", info.engine, info.model, how)
            await self._measure(client)

    async def _connected(self, client: CloudClient) -> CloudInfo:
        with anyio.move_on_after(_LOOK_WITHIN_S):
            return await client.connect(self._vocab, retries=0)
        raise CloudUnreachable(f"no answer within {_LOOK_WITHIN_S:g} s")

    async def _measure(self, client: CloudClient) -> None:
        """Time one round trip over the connection that there is now."""
        if self._on_round_trip is None:
            return
        begun = time.monotonic()
        # the next look says what is wrong with it
        with anyio.move_on_after(_LOOK_WITHIN_S), contextlib.suppress(Exception):
            await client.connect(self._vocab, retries=0)
            self._on_round_trip(time.monotonic() - begun)

    def suspect(self, error: PDDError) -> None:
        """Look at once: an answer has lost the cloud, or was refused by one that may have become another.

        One that could not be reached, or wants to be left alone for a while, is done without meanwhile.
        """
        if self.connection is not Connection.CONNECTED:
            return
        match error:
            case CloudUnreachable() | CloudRefused(retry_after=float()):
                self.connection, self.error = Connection.DOWN, error
            case CloudRefused() if error.status not in _ANOTHER:
                return
            case CloudRefused() | CloudLost():
                pass
            case _:
                return
        self._look_now.set()
