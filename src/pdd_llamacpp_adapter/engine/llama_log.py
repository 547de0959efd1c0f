"""llama.cpp's log: for our exceptions, and for Python's log at its lowest level; not for the user's terminal."""

from __future__ import annotations

import ctypes
import logging
import re

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

logger = logging.getLogger(__name__)

_ERROR = 4  # ggml_log_level: none, debug, info, warn, error, cont
_WHERE = re.compile(r"^\w+: (error loading model: )?")
"""The C function that complains, and what it says before the reason."""
_LONGEST = 500
"""Characters of a reason: it may quote a file."""

_first = ""
"""llama.cpp's first complaint since `forget`: those behind it only say that what they called has failed."""


def forget() -> None:
    """Forget what llama.cpp has complained about: the next reason is that of the next call."""
    global _first
    _first = ""


def reason() -> str:
    """Return llama.cpp's reason for the failure of the last call."""
    return _WHERE.sub("", _first)[:_LONGEST] or "no reason given"


def _log(level: int, text: bytes, _: object) -> None:
    global _first
    line = text.decode("utf-8", "replace").strip()
    if level == _ERROR and line and not _first:
        _first = line
    logger.debug("%s", line)


_CALLBACK = L.llama_log_callback(_log)
"""llama.cpp keeps the pointer: this reference has to live as long as the process."""


def listen() -> None:
    """Have llama.cpp log here."""
    L.llama_log_set(_CALLBACK, ctypes.c_void_p(0))
