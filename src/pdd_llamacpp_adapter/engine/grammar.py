"""The grammar of an answer, followed over the tokens of both engines.

llguidance, because vLLM has it too: both engines mean the same language, and a state is made again from token ids
alone, byte for byte, also in the middle of a string or of a character. llama.cpp's own grammars cannot do this: a
token that such a grammar rejects ends the process.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import DeviceEngineFailed, InvalidGrammar
from pdd_llamacpp_adapter.engine.grammar_limits import check_limits
from pdd_llamacpp_adapter.engine.json_spelling import JsonSpelling
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

_MESSAGE_LENGTH = 300
_MOST_CHECKED = 16
"""Compiled grammars that wait for their answers: as many as a queue has places, and some more."""
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""xgrammar 0.2.8 writes a space behind some commas though it is told not to."""
_ANY_OBJECT = '{"type": "object"}'


class GrammarEngine:
    """Compiles grammars for one model. Safe to use from several threads.

    The first `matcher` reads the vocabulary: half a second for 50,000 tokens.

    Args:
        vocab: the model's tokens.
        eos_ids: what may follow a complete answer; after one of them only they are allowed.
    """

    def __init__(self, vocab: Vocabulary, eos_ids: Iterable[int]) -> None:
        self._vocab = vocab
        self._eos_ids = frozenset(token for token in eos_ids if 0 <= token < vocab.size)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._checked: dict[Grammar, GrammarMatcher] = {}
        """What was compiled by `check` for one answer each, the oldest first."""

    def check(self, grammar: Grammar) -> None:
        """Refuse what `matcher` would refuse. The next answer with this grammar need not compile it again.

        Raises:
            InvalidGrammar: as `matcher`.
        """
        made = self._compiled(grammar)
        with self._lock:
            self._checked[grammar] = made
            if len(self._checked) > _MOST_CHECKED:
                del self._checked[next(iter(self._checked))]

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """Return a matcher at the beginning of an answer. Milliseconds for an ordinary schema.

        Raises:
            InvalidGrammar: `grammar` cannot be compiled, is too large to be compiled safely, or fits no answer.
        """
        with self._lock:
            made = self._checked.pop(grammar, None)
        return self._compiled(grammar) if made is None else made

    def _compiled(self, grammar: Grammar) -> GrammarMatcher:
        from llguidance import LLMatcher, LLParserLimits

        if not self._eos_ids:
            raise _invalid("the model has no end-of-sequence token, so no answer could end", grammar)
        check_limits(grammar)
        try:
            matcher = LLMatcher(
                self._built_tokenizer(),
                _serialized(grammar),
                log_level=0,
                limits=LLParserLimits(verbose_errors=False),
            )
        except ValueError as error:  # not JSON, or text that is not Unicode
            raise _invalid(str(error), grammar) from error
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds grammars that fit no answer at all
        if matcher.is_error():
            raise _invalid(matcher.get_error(), grammar)
        is_json = grammar.kind in (GrammarKind.JSON, GrammarKind.JSON_OBJECT)
        return GrammarMatcher(matcher, self._eos_ids, self._vocab, self._built_tokenizer() if is_json else None)

    def _built_tokenizer(self) -> Any:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tokenizer is None:
                wrapper = TokenizerWrapper(_TokenTable(self._vocab, self._eos_ids))
                self._tokenizer = LLTokenizer(wrapper, eos_token=sorted(self._eos_ids))
            return self._tokenizer


class GrammarMatcher:
    """How far one answer has come in its grammar. Made by `GrammarEngine`; belongs to one thread at a time.

    Args:
        matcher: llguidance's.
        eos_ids: what may follow a complete answer.
        vocab: the model's tokens.
        tokenizer: llguidance's, where the answer is JSON, which the cloud may spell in its own way; else None.
    """

    def __init__(self, matcher: Any, eos_ids: frozenset[int], vocab: Vocabulary, tokenizer: Any = None) -> None:
        self._matcher = matcher
        self.eos_ids = eos_ids
        """What may follow a complete answer."""
        self._vocab = vocab
        self._size = vocab.size
        self._tokenizer = tokenizer
        self._spelling = JsonSpelling()
        self._unspelt: list[int] = []
        """The answer's ids that `_spelling` has not seen: it is needed for few answers."""
        self._bits: np.ndarray = np.zeros((1, (self._size + 31) // 32), dtype=np.int32)
        self.rejected = False
        """A token did not fit; nothing more can be said about this answer."""

    def advance(self, ids: Sequence[int]) -> int | None:
        """Go on by `ids`; return the index of the first that does not fit, or None.

        End-of-sequence ids fit where the answer may end, and behind one another.
        """
        ids = list(ids)
        taken = 0 if self.rejected else self._take(ids)
        while taken < len(ids) and not self.rejected and self._takes_respelt(ids[taken]):
            taken += 1 + self._take(ids[taken + 1 :])
        if taken == len(ids):
            return None
        self.rejected = True
        return taken

    def mask(self, size: int) -> np.ndarray:
        """Return which tokens may come next: bool of shape (size,), False beyond the vocabulary.

        Raises:
            DeviceEngineFailed: a token was rejected, or the grammar has outgrown llguidance's limits.
        """
        from llguidance.numpy import fill_next_token_bitmask

        if not self.rejected:
            fill_next_token_bitmask(self._matcher, self._bits)
            # in its error state llguidance would allow the end, and break off an answer as if it were complete
            self.rejected = self._matcher.is_error()
        if self.rejected:
            # not llguidance's own words: they may hold some of the answer, and this goes to the log
            reason = "outgrown llguidance's limits" if self._matcher.is_error() else "rejected a token"
            raise DeviceEngineFailed(f"the grammar cannot go on: it has {reason}")
        count = min(size, self._size)
        allowed: np.ndarray = np.zeros(size, dtype=bool)
        allowed[:count] = np.unpackbits(self._bits.view(np.uint8)[0], count=count, bitorder="little")
        return allowed

    def _take(self, ids: list[int]) -> int:
        # llguidance's error state is for good: it must not see an id that it does not know
        known = next((i for i, token in enumerate(ids) if not 0 <= token < self._size), len(ids))
        matcher = self._matcher
        taken: int = matcher.try_consume_tokens(ids[:known])
        if matcher.is_stopped() and not matcher.is_error():
            while taken < known and ids[taken] in self.eos_ids:
                taken += 1
        self._unspelt += ids[:taken]
        return taken

    def _takes_respelt(self, token: int) -> bool:
        """Take `token`, which does not fit as it is, if its text in another spelling does."""
        if self._tokenizer is None or not 0 <= token < self._size or self._matcher.is_error():
            return False
        self._spelling.push(b"".join(map(self._vocab.piece, self._unspelt)))
        self._unspelt.clear()
        text = self._vocab.piece(token)
        respelt = self._spelling.push(text)
        if respelt == text:
            return False
        ids = self._tokenizer.tokenize_bytes(respelt)
        taken: int = self._matcher.try_consume_tokens(ids)
        return taken == len(ids)


class _TokenTable:
    """The vocabulary as llguidance's ``TokenizerWrapper`` wants it: bytes per id, special tokens by name."""

    def __init__(self, vocab: Vocabulary, eos_ids: frozenset[int]) -> None:
        self._vocab = vocab
        self.eos_token_id = min(eos_ids)
        self.bos_token_id = vocab.bos_id if vocab.bos_id >= 0 else None
        self.special_token_ids = [token for token in range(vocab.size) if self._is_special(token)]
        self.tokens = [vocab.piece(token) for token in range(vocab.size)]
        for token in self.special_token_ids:
            self.tokens[token] = vocab.raw_tokens[token].encode()

    def _is_special(self, token: int) -> bool:
        """As in ``llguidance.llamacpp``: user-defined tokens are text unless they look like ``<this>``."""
        if not self._vocab.is_special(token):
            return False
        raw = self._vocab.raw_tokens[token]
        return not self._vocab.piece(token) or (raw.startswith("<") and raw.endswith(">"))

    def __call__(self, text: str | bytes) -> list[int]:
        return self._vocab.tokenize(text if isinstance(text, str) else text.decode("utf-8", "replace"))


def _serialized(grammar: Grammar) -> str:
    """Return llguidance's form of `grammar`, as ``vllm.v1.structured_output.backend_guidance`` makes it."""
    from llguidance import LLMatcher

    match grammar.kind:
        case GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(grammar.text))
        case GrammarKind.GRAMMAR:
            return str(LLMatcher.grammar_from_lark(grammar.text))
        case GrammarKind.CHOICE:
            choices = " | ".join(json.dumps(choice) for choice in json.loads(grammar.text))
            return str(LLMatcher.grammar_from_lark(f"start: {choices}"))
        case _:
            schema = _ANY_OBJECT if grammar.kind is GrammarKind.JSON_OBJECT else grammar.text
            options = _COMPACT if grammar.compact else {"whitespace_flexible": True}
            return str(LLMatcher.grammar_from_json_schema(schema, defaults=options))


def _invalid(message: str, grammar: Grammar) -> InvalidGrammar:
    return InvalidGrammar(f"the grammar cannot be used: {_first_line(message)}", param=grammar.param)


def _first_line(message: str) -> str:
    line = message.partition("\n")[0]
    return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + "..."
