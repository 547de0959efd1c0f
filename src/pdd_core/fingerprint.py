"""The vocabulary fingerprint: may token ids cross between cloud and device?

Both sides hash their table ``id -> raw token string`` (the strings of tokenizer.json, which are also those of
a GGUF's ``tokenizer.ggml.tokens``). Text is never compared: two tokenizers with one table can still split a text
differently, which is harmless as long as only ids travel.

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
    from collections.abc import Iterable, Mapping, Sequence

PIECE = 1024
"""Ids per hashed piece."""
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
"""An id or a count on the wire: both engines keep them in C ints."""
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\p{C}\p{Zl}\p{Zp}]*$")]
"""A name on the wire, which may be a path: one line, so that it can be logged."""


class TokenizerFingerprint(BaseModel):
    """What a server tells about its tokenizer. Unknown fields are ignored."""

    model_config = ConfigDict(frozen=True)

    digest: str
    """SHA-256 over everything below: two equal digests are two equal fingerprints."""
    size: Natural
    """Length of the table. A GGUF may be longer: models pad their vocabulary."""
    pieces: tuple[str, ...]
    """SHA-256 (first 16 hex digits) of each run of `PIECE` ids; holes are hashed as null."""
    holes: tuple[Natural, ...] = ()
    """Ids below `size` that no token has."""
    special_ids: tuple[Natural, ...]
    """Control tokens, ascending."""
    eos_ids: tuple[Natural, ...]
    """Ids that end an answer on the server, the tokenizer's own first."""


def table_of(vocab: Mapping[str, int]) -> list[str | None]:
    """Turn a ``token -> id`` mapping (transformers' ``get_vocab()``) into the table, None at holes."""
    table: list[str | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        table[token_id] = token
    return table


def fingerprint(
    table: Sequence[str | None], *, special_ids: Iterable[int], eos_ids: Iterable[int]
) -> TokenizerFingerprint:
    """Hash `table`. About 15 ms for 50,000 entries: once per start, not per request."""
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


def hash_pieces(table: Iterable[str | None]) -> Iterable[str]:
    """Yield the hash of each run of `PIECE` entries."""
    entries = iter(table)
    while piece := list(islice(entries, PIECE)):
        yield hashlib.sha256(json.dumps(piece, ensure_ascii=False).encode()).hexdigest()[:16]


def first_differing_piece(cloud: TokenizerFingerprint, device: Sequence[str]) -> int | None:
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
