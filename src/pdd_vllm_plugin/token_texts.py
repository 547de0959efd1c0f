"""What each token of a prompt looks like as text: refiners see words, lines and template marks in it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pdd_vllm_plugin.token_bytes import TokenBytes

if TYPE_CHECKING:
    from collections.abc import Sequence


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
            self._known[token] = "" if text is None else self._bytes.of(token, text).decode("utf-8", "replace")
        return tuple(self._known[token] for token in token_ids)

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self._tokenizer)
