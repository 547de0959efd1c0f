"""Emulated links in a process of their own, so that they take no time of a device's core."""

import asyncio
import multiprocessing
import os
from contextlib import AsyncExitStack, suppress
from typing import Any

from pdd_cli.link import Link, emulated

_PATIENCE_S = 60


class LinkProcess:
    """Starts the process. Each of some devices gets a link of its own for each of `links`, all to one server."""

    def __init__(self, links: list[str], *, devices: int, url: str, cores: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, links, devices, url, cores), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(_PATIENCE_S):
            raise RuntimeError("the links are not there in time")
        self.urls: list[dict[str, str]] = self._pipe.recv()
        """Per device: the server's URL over each link, by the link's name."""

    def stop(self) -> None:
        with suppress(OSError):
            self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Any, links: list[str], devices: int, url: str, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores)
    with suppress(EOFError):
        asyncio.run(_links(pipe, links, devices, url))


async def _links(pipe: Any, links: list[str], devices: int, url: str) -> None:
    async with AsyncExitStack() as stack:

        async def over(name: str) -> str:
            return await stack.enter_async_context(emulated(Link.parse(name), url))

        pipe.send([{name: await over(name) for name in links} for _ in range(devices)])
        await asyncio.to_thread(pipe.recv)  # until the other end is closed
