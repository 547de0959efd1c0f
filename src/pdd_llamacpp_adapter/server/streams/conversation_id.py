"""The name by which a client can come back to an answer's stream."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidRequest

if TYPE_CHECKING:
    from starlette.datastructures import Headers

CONVERSATION_ID = "X-Conversation-Id"
_ID = re.compile(r"[A-Za-z0-9._~:/@+=-]{1,256}")
"""llama.cpp's own page sends a UUID, or ``UUID::owner/model``."""


def conversation_of(headers: Headers) -> str:
    """Return what a request calls its conversation; empty where it does not.

    Raises:
        InvalidRequest: as `check_conversation_id` does.
    """
    told = headers.get(CONVERSATION_ID, "")
    return check_conversation_id(told, CONVERSATION_ID) if told else ""


def check_conversation_id(name: str, param: str) -> str:
    """Return `name`, which came as `param`.

    Raises:
        InvalidRequest: it is empty or too long, or has other characters than such names have.
    """
    if not _ID.fullmatch(name):
        problem = f"{param} must be 1 to 256 letters, digits, or any of . _ ~ : / @ + = -"
        raise InvalidRequest(problem, param=param)
    return name
