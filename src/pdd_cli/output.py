"""Output of a command that goes on when nobody takes its output any more."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast


class _Outlasting:
    """A text stream that falls silent when it cannot be written to: a closed pipe, a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._fall_silent()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._fall_silent()

    def _fall_silent(self) -> None:
        # what the stream still holds goes there, too: else Python would fail to write it at its end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlast_output() -> None:
    """Have standard output and standard error fail nobody, from now to the end of the process.

    One that was closed at the start is opened on nothing. The next file or connection would have its number
    otherwise, and what llama.cpp prints would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
    # None is what Python has in place of one that was closed
    sys.stdout, sys.stderr = (
        stream and cast("TextIO", _Outlasting(stream)) for stream in (sys.stdout, sys.stderr)
    )
