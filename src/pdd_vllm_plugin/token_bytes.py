"""What each token means: the bytes that it adds to a text. A tokenizer's files spell them in several ways."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pdd_core.fingerprint import literal_bytes
from pdd_vllm_plugin.compat import tekken_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTINUES = "##"
"""WordPiece's mark of a token that goes on with a word."""


class TokenBytes:
    """Of one tokenizer, by its decoder: that is what turns its tokens into the text that vLLM sends.

    Without one (a tokenizer that is not of Hugging Face's fast ones), the vocabulary itself tells bytes written as
    letters from SentencePiece.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._literal = frozenset((*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids))
        """Added tokens are not spelt in the vocabulary's own way."""
        decoders = frozenset(_decoders(tokenizer))
        self._letters = "ByteLevel" in decoders if decoders else "Ċ" in self._vocabulary
        self._words = "WordPiece" in decoders
        self._byte_tokens = "ByteFallback" in decoders or not decoders

    def of(self, token: int, raw: str) -> bytes:
        """Return the bytes of `token`, which the vocabulary spells `raw`."""
        if token in self._literal:
            return literal_bytes(raw)
        if self._letters:
            try:
                return bytes(_BYTES[letter] for letter in raw)
            except KeyError:
                return raw.encode()
        if self._words:
            return (raw.removeprefix(_CONTINUES) if raw.startswith(_CONTINUES) else f" {raw}").encode()
        if self._byte_tokens and (byte := _BYTE.fullmatch(raw)):
            return bytes.fromhex(byte[1])
        return literal_bytes(raw)

    def table(self) -> list[bytes | None]:
        """Return the bytes of every token, None where no token has the id."""
        if (tekken := tekken_bytes(self._tokenizer)) is not None:
            return list(tekken)
        table: list[bytes | None] = [None] * (max(self._vocabulary.values(), default=-1) + 1)
        for raw, token in self._vocabulary.items():
            table[token] = self.of(token, raw)
        return table


def _decoders(tokenizer: Any) -> Iterator[str]:
    """Yield the kinds of decoders that a fast tokenizer runs, such as ``ByteLevel``.

    In JSON, as they are pickled: `tokenizers` has no other way to look into a sequence of them.
    """
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return
    state = json.loads(decoder.__getstate__())
    for one in state.get("decoders", [state]):
        yield one["type"]


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's ``bytes_to_unicode``, backwards: printable bytes are themselves, the others follow from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _bytes_of_letters()
