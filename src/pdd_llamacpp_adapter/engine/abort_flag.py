"""How another thread stops llama.cpp in the middle of a batch, without Python's lock.

llama.cpp asks a C function whether to go on, for every node of its graph: about a thousand times per batch. One of
Python's would take the interpreter's lock each time; beside a busy event loop, each question then waits until that
rests, or for the interpreter's switch interval (5 ms), and a batch of 150 ms takes half a second and more.
"""

from __future__ import annotations

import ctypes
import os

_STRLEN = (ctypes.cdll.msvcrt if os.name == "nt" else ctypes.CDLL(None)).strlen
"""Asks for us: a pointer to a C string goes in, and what comes out is 0, or 1 for a string of one character."""


class DecodeAborted(Exception):
    """llama_decode stopped because it was told to. Never leaves this package."""


class AbortFlag:
    """Raised by any thread while llama.cpp computes on another one. Has to live as long as llama.cpp may ask."""

    def __init__(self) -> None:
        self._string = ctypes.create_string_buffer(2)

    @property
    def raised(self) -> bool:
        """Whether llama.cpp is to stop."""
        return self._string[0] != b"\0"

    @raised.setter
    def raised(self, raised: bool) -> None:
        self._string[0] = b"\1" if raised else b"\0"

    @property
    def question(self) -> ctypes.c_void_p:
        """The function that llama.cpp calls, a ``bool (*)(void *)``: true while the flag is raised."""
        return ctypes.cast(_STRLEN, ctypes.c_void_p)

    @property
    def data(self) -> ctypes.c_void_p:
        """What llama.cpp passes to it."""
        return ctypes.cast(self._string, ctypes.c_void_p)
