"""Names and values in the store, which show no handoff id and no completion's id.

Either id lets its holder read or delete a state. So a key has a hash of the id, and a value is masked with it: who
sees the keys, a log of commands or a dump, and has no id, cannot ask a cloud for a state.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

PREFIX = "pdd:1:"
"""Of every key and channel. The number rises when the form of the values changes."""
STATES = f"{PREFIX}state:"
"""Before the hash in a state's key."""
INDEX = f"{PREFIX}index"
"""Sorted set: the states by the time at which they expire."""
SIZES = f"{PREFIX}sizes"
"""Hash: the bytes of each state, and of all (`total`)."""
ASK = f"{PREFIX}ask"
"""Channel of the questions: `Questions`."""
_NONCE_BYTES = 16


def digest(name: str) -> str:
    """Return the hash that stands for an id: 40 hexadecimal digits."""
    return hashlib.sha256(b"pdd name " + _bytes(name)).hexdigest()[:40]


def state_key(name: str) -> str:
    """Return the key of a state, by its handoff id."""
    return STATES + digest(name)


def completion_key(name: str) -> str:
    """Return the key of the set of handoff ids that a completion's id names."""
    return f"{PREFIX}completion:{digest(name)}"


def gone_key(name: str) -> str:
    """Return the key of a deleted id's tombstone."""
    return f"{PREFIX}gone:{digest(name)}"


def answer_channel(replica: str) -> str:
    """Return the channel on which a replica hears the answers to its questions."""
    return f"{PREFIX}answer:{replica}"


def seal(name: str, content: bytes, nonce: bytes | None = None) -> bytes:
    """Return `content` masked with `name` and a nonce, which comes first. A given one must be used once only."""
    nonce = secrets.token_bytes(_NONCE_BYTES) if nonce is None else nonce
    return nonce + _mask(name, nonce, content)


def unseal(name: str, sealed: bytes) -> bytes:
    """Return what was sealed with `name`; something else if it was sealed with another."""
    return _mask(name, sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:])


def seal_handoff_id(completion: str, handoff_id: str) -> bytes:
    """Return a handoff id sealed with its completion's id: always the same bytes, so that a set has it once."""
    return seal(completion, _bytes(handoff_id), bytes.fromhex(digest(handoff_id))[:_NONCE_BYTES])


def _mask(name: str, nonce: bytes, content: bytes) -> bytes:
    pad = hashlib.shake_256(b"pdd mask " + nonce + _bytes(name)).digest(len(content))
    return (np.frombuffer(pad, np.uint8) ^ np.frombuffer(content, np.uint8)).tobytes()


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")  # what a path has is not always text
