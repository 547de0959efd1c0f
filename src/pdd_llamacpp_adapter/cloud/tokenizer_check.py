"""Is the cloud's vocabulary the device's? Token ids cross only if it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import anyio

from pdd_core.errors import TokenizerMismatch
from pdd_core.fingerprint import PIECE, first_differing_piece, quoted
from pdd_llamacpp_adapter.cloud.cloud_gate import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from pdd_core.fingerprint import TokenizerFingerprint
    from pdd_core.handoff import VocabularyPiece


class DeviceVocabulary(Protocol):
    """What the check needs of the device's vocabulary."""

    eos_id: int

    @property
    def token_bytes(self) -> Sequence[bytes]:
        """What each token means, as in `pdd_core.fingerprint`."""

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
        TokenizerMismatch: a token or a control token differs, or the device has an end of sequence that is not one
            of the cloud's.
    """
    tokens, index = await anyio.to_thread.run_sync(_compared, cloud, device)
    if index is not None:
        raise TokenizerMismatch(_name_difference(await fetch_piece(index * PIECE), tokens, cloud))
    # the cloud may end answers at several tokens, and GGUF has room for one: which one, converters differ
    if device.eos_id >= 0 and device.eos_id not in cloud.eos_ids:
        theirs = cloud.eos_ids[0] if cloud.eos_ids else None
        raise TokenizerMismatch(f"end of sequence is token {theirs} in the cloud, {device.eos_id} on the device")
    for token_id in cloud.special_ids:
        if token_id >= len(tokens):
            raise TokenizerMismatch(f"the cloud has a control token {token_id}, the device has none of this id")
        if not device.is_special(token_id):
            raise TokenizerMismatch(
                f"token {token_id} ({quoted(tokens[token_id])}) is a control token in the cloud "
                "and ordinary text on the device"
            )


def _compared(cloud: TokenizerFingerprint, device: DeviceVocabulary) -> tuple[Sequence[bytes], int | None]:
    """On a worker thread: a large vocabulary takes most of a second, which no other answer should wait for."""
    tokens = device.token_bytes
    return tokens, first_differing_piece(cloud, tokens)


def _name_difference(piece: VocabularyPiece, device: Sequence[bytes], cloud: TokenizerFingerprint) -> str:
    holes = frozenset(cloud.holes)
    for token_id, theirs in enumerate(piece.tokens, piece.start):
        if token_id in holes or theirs is None:
            continue
        what = shown(quoted(theirs))
        if token_id >= len(device):
            return f"the cloud has token {token_id} ({what}), the device's vocabulary ends at {len(device) - 1}"
        if device[token_id] != theirs:
            return f"token {token_id} is {what} in the cloud and {quoted(device[token_id])} on the device"
    return f"the vocabularies differ within tokens {piece.start} to {piece.start + len(piece.tokens) - 1}"
