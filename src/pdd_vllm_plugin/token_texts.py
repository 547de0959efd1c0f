"""What each token of a prompt looks like as text: refiners see words, lines and template marks in it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SPACE = "▁"
"""SentencePiece's mark for a space."""


class TokenTexts:
    """Of one Hugging Face tokenizer. Remembers what it has seen: prompts repeat their tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # Llama 3 lists only BOS and EOS among `all_special_ids`, and none of its template's marks
        marks = {token for token, entry in added.items() if getattr(entry, "special", False)}
        self.special_ids = frozenset(tokenizer.all_special_ids) | marks

    def of(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """Return the text of each token; special tokens are spelt out. Bytes that are no character become one."""
        unknown = [token for token in dict.fromkeys(token_ids) if token not in self._known]
        raw = self._tokenizer.convert_ids_to_tokens(unknown)
        for token, text in zip(unknown, raw, strict=True):
            self._known[token] = "" if text is None else self._text(token, text)
        return tuple(self._known[token] for token in token_ids)

    def _text(self, token: int, raw: str) -> str:
        if token in self.special_ids or raw in self._added:
            return raw
        if self._byte_level:
            return bytes(_BYTES.get(character, 0x3F) for character in raw).decode("utf-8", "replace")
        if len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
            return bytes([int(raw[3:5], 16)]).decode("utf-8", "replace")
        return raw.replace(_SPACE, " ")

    @cached_property
    def _added(self) -> frozenset[str]:
        return frozenset(self._tokenizer.get_added_vocab())

    @cached_property
    def _byte_level(self) -> bool:
        """Whether the vocabulary writes bytes as letters (GPT-2), in which a newline is ``Ċ``."""
        return "Ċ" in self._tokenizer.get_vocab()


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's ``bytes_to_unicode``, backwards: printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _bytes_of_letters()
