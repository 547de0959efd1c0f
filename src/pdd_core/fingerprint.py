"""The vocabulary fingerprint: may token ids cross between cloud and device?

Both sides hash their table ``id -> bytes``: what a token adds to a text, and of a control token the literal text
that stands for it. How a file spells a token is never compared: tokenizer.json and GGUF differ there. Nor is how a
text is split: two tokenizers with one table can do so differently, which is harmless as long as only ids travel.

The table is hashed in pieces, so that a mismatch can be narrowed down to the first differing id by fetching one
piece of the cloud's table instead of all of it.
"""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PIECE = 1024
"""Ids per hashed piece."""
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
"""An id or a count on the wire: both engines keep them in C ints."""
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]
"""A name on the wire, which may be a path: one line, so that it can be logged."""
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a blank, in tokens of all kinds."""


class TokenizerFingerprint(BaseModel):
    """What a server tells about its tokenizer. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """SHA-256 over everything below: two equal digests are two equal fingerprints."""
    size: Natural
    """Length of the table. A GGUF may be longer: models pad their vocabulary."""
    pieces: tuple[str, ...]
    """SHA-256 (first 16 hex digits) of each run of `PIECE` tokens, each as ``LENGTH:BYTES``; a hole is ``-``."""
    holes: tuple[Natural, ...] = ()
    """Ids below `size` that no token has."""
    special_ids: tuple[Natural, ...]
    """Control tokens, ascending."""
    eos_ids: tuple[Natural, ...]
    """Ids that end an answer on the server, the tokenizer's own first."""


def literal_bytes(text: str) -> bytes:
    """Return the bytes of a token whose text stands for itself, but for its blanks.

    A user-defined token of two blanks is ``▁▁`` in tokenizer.json, and two blanks in a GGUF.
    """
    return text.replace(_BLANK, " ").encode("utf-8", "surrogatepass")


def quoted(token: bytes) -> str:
    """Return a token for people: its text in quotes, or its bytes where they are no text."""
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)


def fingerprint(
    table: Sequence[bytes | None], *, special_ids: Iterable[int], eos_ids: Iterable[int]
) -> TokenizerFingerprint:
    """Hash `table`. Once per start, not per request."""
    pieces = tuple(hash_pieces(table))
    special, eos = tuple(sorted(set(special_ids))), tuple(dict.fromkeys(eos_ids))
    whole = json.dumps([len(table), pieces, special, eos]).encode()
    return TokenizerFingerprint(
        digest=hashlib.sha256(whole).hexdigest(),
        size=len(table),
        pieces=pieces,
        holes=tuple(i for i, token in enumerate(table) if token is None),
        special_ids=special,
        eos_ids=eos,
    )


def hash_pieces(table: Iterable[bytes | None]) -> Iterable[str]:
    """Yield the hash of each run of `PIECE` entries."""
    entries = iter(table)
    while piece := list(islice(entries, PIECE)):
        written = b"".join(b"-" if token is None else b"%d:%b" % (len(token), token) for token in piece)
        yield hashlib.sha256(written).hexdigest()[:16]


def first_differing_piece(cloud: TokenizerFingerprint, device: Sequence[bytes]) -> int | None:
    """Index of the first piece in which the device's table differs from the cloud's, or None.

    Entries of `device` beyond the cloud's size, and those at the cloud's holes, are padding and do not count.
    """
    holes = frozenset(cloud.holes)
    comparable = [None if i in holes else token for i, token in enumerate(device[: cloud.size])]
    ours = list(hash_pieces(comparable))
    for index, theirs in enumerate(cloud.pieces):
        if index >= len(ours) or ours[index] != theirs:
            return index
    return None
