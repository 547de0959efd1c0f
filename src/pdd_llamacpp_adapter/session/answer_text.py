"""The text of one answer, up to its stop string. One object sees the tokens of both engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class AnswerText:
    """Ids in, text out that may be shown: never a part of a stop string, nor of a character.

    A stop string is found as in vLLM (``vllm.v1.engine.detokenizer``), token by token: the one that is complete
    first, at ties the first in the list; and only if it is complete after `min_tokens` tokens, wherever it began.

    Args:
        piece: the bytes of an id. A stop token adds no text in vLLM: do not push the one that ends the answer.
        stop: strings that end the answer, none empty.
        min_tokens: tokens of the answer, made by either engine, in which no stop string counts.
        keeps_stop: whether the stop string that is found is shown: vLLM's ``include_stop_str_in_output``.
    """

    def __init__(
        self,
        piece: Callable[[int], bytes],
        *,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        keeps_stop: bool = False,
    ) -> None:
        self.keeps_stop = keeps_stop
        self._detokenizer = Detokenizer(piece)
        self._searches = [_Search(text) for text in stop]
        self._ignored_tokens = min_tokens
        self._withheld = ""
        self.stopped: str | None = None
        """The stop string that was found. The text before it has been returned; nothing after it ever is."""

    def push(self, token_id: int) -> str:
        """Return the text to show with `token_id`: its own, and what was withheld until now."""
        text = self._detokenizer.push(token_id)
        return self._search(text) if self._searches else text

    def flush(self) -> str:
        """Return what is still withheld when the answer ends; a second time, nothing."""
        if self.stopped is not None:
            return ""
        text, self._withheld = self._withheld, ""
        return text

    def _search(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        counts = self._ignored_tokens <= 0
        self._ignored_tokens -= 1
        begun = len(self._withheld)
        self._withheld += text
        for end, character in enumerate(text, start=begun + 1):
            for search in self._searches:
                if search.completed_by(character) and counts:
                    self.stopped = search.wanted
                    return self._withheld[: end if self.keeps_stop else end - len(search.wanted)]
        shown = len(self._withheld) - max(search.matched for search in self._searches)
        text, self._withheld = self._withheld[:shown], self._withheld[shown:]
        return text


class _Search:
    """Looks for one string, character by character (Knuth, Morris, Pratt 1977): no text is read twice."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.matched = 0
        """Length of the longest end of the text that is a proper beginning of `wanted`."""
        # per length of a beginning: the next shorter beginning that it ends with. Made as far as it is needed: a
        # client may send a stop string of megabytes, and no answer is that long
        self._shorter = [0, 0]

    def completed_by(self, character: str) -> bool:
        """Whether `character` completes the string."""
        self.matched = self._extend(self.matched, character)
        completed = self.matched == len(self.wanted)
        if completed:
            self.matched = self._next_shorter(self.matched)
        return completed

    def _extend(self, length: int, character: str) -> int:
        while length and self.wanted[length] != character:
            length = self._next_shorter(length)
        return length + (self.wanted[length] == character)

    def _next_shorter(self, length: int) -> int:
        shorter = self._shorter
        while len(shorter) <= length:
            shorter.append(self._extend(shorter[-1], self.wanted[len(shorter) - 1]))
        return shorter[length]
