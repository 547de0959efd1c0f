"""A loaded model, freed only when no thread is in one of llama.cpp's functions with it any more.

A worker thread that reads a long text may outlive its request, and the event loop: nothing can stop it in there.
"""

from __future__ import annotations

import threading
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from pdd_core.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class SharedModel:
    """A model that any thread may use, in a ``with``: ``with model as handle: ...``.

    Args:
        handle: llama.cpp's pointer.
        free: frees it.
    """

    def __init__(self, handle: Any, free: Callable[[Any], object]) -> None:
        self.handle = handle
        """For the owner, who uses it before `close` only."""
        self.closed = False
        """Whether it has been, or is about to be, freed."""
        self._free = free
        self._lock = threading.Lock()
        self._calls = 0

    def __enter__(self) -> Any:
        """Keep the model until the block ends.

        Raises:
            DeviceError: it is closed.
        """
        with self._lock:
            self.check_open()
            self._calls += 1
        return self.handle

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._calls -= 1
            last = self.closed and not self._calls
        if last:
            self._free(self.handle)

    def check_open(self) -> None:
        """Raise DeviceError if it is closed."""
        if self.closed:
            raise DeviceError("the vocabulary's engine is closed")

    def close(self) -> None:
        """Refuse new calls, and free the model: now, or where the last one ends. Harmless when repeated."""
        with self._lock:
            now = not self.closed and not self._calls
            self.closed = True
        if now:
            self._free(self.handle)


class _UsesModel(Protocol):
    _model: SharedModel


Owner = TypeVar("Owner", bound=_UsesModel)


def keeps_model(method: Callable[Concatenate[Owner, P], T]) -> Callable[Concatenate[Owner, P], T]:
    """Keep ``self._model`` for as long as `method` runs. It raises DeviceError once the model is closed."""

    @wraps(method)
    def kept(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._model:
            return method(self, *args, **kwargs)

    return kept
