"""The name by which routers keep the requests of one conversation on one replica.

It serves the replica's prefix cache, and a handoff's later requests find the replica that has its state. The name
is a keyed hash of how the conversation begins: nobody can guess it, or read the prompt in it. Another process
makes another name.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from typing import TYPE_CHECKING, Any

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SESSION_HEADER = "X-Session-ID"
"""The header that ``vllm-router`` and production-stack read, among others."""
_OTHERS = frozenset(
    {"accept", "accept-encoding", "authorization", "connection", "content-length", "content-type", "cookie"}
    | {"host", "te", "transfer-encoding", "upgrade", "user-agent"}
)
"""Headers that say something else already, in small letters."""
_HEADER = re.compile(r"[A-Za-z0-9-]{0,64}")
_VALUE = re.compile(r"[!-~]{1,256}")
_SECRET = secrets.token_bytes(32)
_BEGINNING = 64
"""Tokens of a prompt that tell one conversation from another, where nothing else does."""


def session_id(*beginning: str) -> str:
    """Return the name of the conversation that begins so: 32 hexadecimal digits."""
    digest = hashlib.blake2b(key=_SECRET, digest_size=16)
    for part in beginning:
        written = part.encode("utf-8", "surrogatepass")
        digest.update(len(written).to_bytes(8) + written)
    return digest.hexdigest()


def beginning_of_prompt(ids: Sequence[int]) -> list[str]:
    """Return as much of a prompt's token ids as `session_id` needs to tell conversations apart."""
    return [str(token) for token in ids[:_BEGINNING]]


def beginning_of_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return a chat up to and with the user's first message. The rest grows from turn to turn."""
    first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), len(messages) - 1)
    return json.dumps(messages[: first + 1], sort_keys=True, default=str)


def session_of_client(sent: str) -> str:
    """Return the name that a client has `sent`, or one made of it where a header cannot hold it."""
    return sent if _VALUE.fullmatch(sent) else session_id(sent)


def check_session_header(name: str) -> str:
    """Return `name` if a header for sessions can be called so; empty is none.

    Raises:
        ConfigurationError: it is no name of a header, or that of one with another meaning.
    """
    if not _HEADER.fullmatch(name) or name.lower() in _OTHERS:
        rule = f"must be a header's name such as {SESSION_HEADER}, of letters, digits and hyphens"
        raise ConfigurationError(f"session_header {rule}, or empty for none; not {name[:80]!r}")
    return name
