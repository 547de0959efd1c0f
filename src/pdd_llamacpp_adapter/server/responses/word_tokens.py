"""Which of an answer's tokens are its words: not those of its thoughts, its calls, their markers and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.timeline import ShownToken


class WordTokens:
    """Takes an answer's tokens as they are shown, and gives them out with the words that are made of them.

    The parsers hold text back, and drop some: words are therefore looked for in the text of the tokens that wait.
    A token that brings no text, as in the middle of a character, belongs to the one that brings its own.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[ShownToken | None, str]] = []
        """Tokens with their text; None where words before have had the token and left the rest of its text."""

    def add(self, token: ShownToken) -> None:
        """Take the next token. One that is no text at all, such as the answer's end, must not be among them."""
        self._waiting.append((token, token.text))

    def of(self, words: str) -> list[ShownToken]:
        """Return the tokens of `words`, the next there are."""
        text = "".join(own for _, own in self._waiting)
        # words go on where the last ones ended; behind something else they are the newest that is not held back
        start = 0 if text.startswith(words) else text.rfind(words)
        if start < 0:  # withheld to the answer's end, and no token brought them
            start, words = 0, text + words
        waiting, self._waiting = self._waiting, []
        end, at = start + len(words), 0
        found: list[ShownToken] = []
        for token, own in waiting:
            begin, at = at, at + len(own)
            among = begin < end and max(at, begin + 1) > start
            if among and token is not None:
                found.append(token)
            if begin >= end or at > end:
                self._waiting.append((None if among else token, own[max(0, end - begin) :]))
        return found
