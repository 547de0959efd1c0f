"""Where a text can be cut for llama.cpp, whose time grows with the square of the control tokens in it.

llama.cpp first finds the control tokens, the longest ones first, and then splits each stretch between two of them
by itself (``llama_vocab::impl::tokenizer_st_partition``). So the tokens are the same if the text is cut before a
control token that no other can overlap.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.request import context_overflow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TOGETHER = 256
"""Control tokens in one piece: a millisecond."""
BRACKET = re.compile(r"[<>\[\]]")
_BRACKETED = re.compile(r"<[^<>\[\]]*+>|\[[^<>\[\]]*+\]")
"""What nearly all control tokens look like, such as ``<|im_end|>``. Two of these never overlap."""


class ControlTexts:
    """The control tokens of one model, as they are written in a text.

    Args:
        texts: all that have a bracket in them, and whether the text before one is left as it is.
        together: as many of them may be in one piece.
    """

    def __init__(self, texts: Mapping[str, bool], *, together: int = TOGETHER) -> None:
        self.texts = texts
        self._together = together
        bracketed = {text for text in texts if _BRACKETED.fullmatch(text)}
        # one of another form, such as "<<", might overlap any
        self._apart = frozenset(text for text in bracketed if texts[text]) if len(bracketed) == len(texts) else ()

    def check(self, text: str, *, most: int) -> None:
        """Refuse a text in which there are more control tokens than `most`.

        Raises:
            ContextOverflow: there are.
        """
        count = sum(1 for _ in self._found(text))
        if count > most:
            raise context_overflow(most, f"the prompt is too long: it has {count} control tokens alone")

    def cut(self, text: str) -> Iterator[str]:
        """Return the pieces of `text`, each with no more than `together` of those that none can overlap."""
        begin = 0
        for number, found in enumerate(self._found(text), 1):
            if number % self._together == 0:
                yield text[begin : found.start()]
                begin = found.start()
        yield text[begin:]

    def _found(self, text: str) -> Iterator[re.Match[str]]:
        if not self._apart:
            return
        for found in _BRACKETED.finditer(text):
            if found[0] in self._apart:
                yield found
