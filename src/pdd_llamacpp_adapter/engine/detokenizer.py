"""Ids to text, across the seam between the engines. Knows no engine: it is given each id's bytes."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Detokenizer:
    """Ids in, text out, one answer long. Bytes of an unfinished character wait for the next id.

    If there is none, they are no text: an answer that ends inside a character ends before it, as in vLLM.

    The same object has to serve both engines' tokens: a character may begin in the cloud and end on the device.
    """

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return what `token_id` adds to the text; empty inside a character and for control tokens."""
        return self._decoder.decode(self._piece(token_id))
