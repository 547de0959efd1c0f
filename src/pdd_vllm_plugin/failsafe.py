"""Keeps exceptions of our own code out of vLLM's steps, where one would end the engine and all its requests."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger("vllm.pdd")


class Failsafe:
    """A context in which code of ours runs inside a step. What it raises is logged in one line, the first time.

    Args:
        consequence: what requests go without, for the log.
        then: what to do the first time.
    """

    __slots__ = ("_consequence", "_then", "failed")

    def __init__(self, consequence: str, then: Callable[[], object] = lambda: None) -> None:
        self._consequence = consequence
        self._then = then
        self.failed = False
        """Something was raised. Code that is not to run again looks here first."""

    def __enter__(self) -> Failsafe:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Take an exception, unless it is one that ends a process."""
        if not isinstance(error, Exception):
            return False
        if not self.failed:
            self.failed = True
            place = traceback.extract_tb(trace)[-1]
            # the kind alone: a message may have a part of a prompt in it
            logger.error(
                "pdd: %s: %s in %s, line %s. Please report it with the version of vLLM",
                self._consequence, type(error).__name__, place.filename, place.lineno,
            )  # fmt: skip
            with suppress(Exception):
                self._then()
        return True
