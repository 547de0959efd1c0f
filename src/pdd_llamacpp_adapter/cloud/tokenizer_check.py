"""Is the cloud's vocabulary the device's? Token ids cross only if it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pdd_core.errors import TokenizerMismatch
from pdd_core.fingerprint import PIECE, first_differing_piece
from pdd_llamacpp_adapter.cloud.cloud_gate import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pdd_core.fingerprint import TokenizerFingerprint
    from pdd_core.handoff import VocabularyPiece


class DeviceVocabulary(Protocol):
    """What the check needs of the device's vocabulary."""

    eos_id: int

    @property
    def raw_tokens(self) -> list[str]:
        """Raw token string per id."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is not ordinary text."""


async def check_tokenizer(
    cloud: TokenizerFingerprint,
    device: DeviceVocabulary,
    fetch_piece: Callable[[int], Awaitable[VocabularyPiece]],
) -> None:
    """Return if ids mean the same on both sides.

    `fetch_piece(start)` is called only on a mismatch, to name the first difference.

    Raises:
        TokenizerMismatch: a token, the end of sequence, or a control token differs.
    """
    index = first_differing_piece(cloud, device.raw_tokens)
    if index is not None:
        raise TokenizerMismatch(_name_difference(await fetch_piece(index * PIECE), device.raw_tokens, cloud))
    if not cloud.eos_ids or cloud.eos_ids[0] != device.eos_id:
        theirs = cloud.eos_ids[0] if cloud.eos_ids else None
        raise TokenizerMismatch(f"end of sequence is token {theirs} in the cloud, {device.eos_id} on the device")
    for token_id in cloud.special_ids:
        if token_id >= len(device.raw_tokens):
            raise TokenizerMismatch(f"the cloud has a control token {token_id}, the device has none of this id")
        if not device.is_special(token_id):
            raise TokenizerMismatch(
                f"token {token_id} ({device.raw_tokens[token_id]!r}) is a control token in the cloud "
                "and ordinary text on the device"
            )


def _name_difference(piece: VocabularyPiece, device: list[str], cloud: TokenizerFingerprint) -> str:
    holes = frozenset(cloud.holes)
    for token_id, theirs in enumerate(piece.tokens, piece.start):
        if token_id in holes:
            continue
        what = shown(repr(theirs))
        if token_id >= len(device):
            return f"the cloud has token {token_id} ({what}), the device's vocabulary ends at {len(device) - 1}"
        if device[token_id] != theirs:
            return f"token {token_id} is {what} in the cloud and {device[token_id]!r} on the device"
    return f"the vocabularies differ within tokens {piece.start} to {piece.start + len(piece.tokens) - 1}"
