"""vLLM's ``bad_words``: texts that an answer must not hold, as the tokens that it must not be made of.

``vllm.SamplingParams.update_from_tokenizer`` and ``vllm.v1.sample.ops.bad_words``. As there, a word is known by
its usual tokens: the model can still spell it with others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

MAX_BAD_WORDS = 128
"""Of token sequences, most words being two: vLLM's ``VLLM_MAX_NUM_BAD_WORDS``."""
MAX_BAD_WORD_TOKENS = 1024
"""In all of them: vLLM's ``VLLM_MAX_BAD_WORDS_TOTAL_TOKENS``."""


def bad_word_ids(words: Iterable[str], vocab: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """Return the token sequences that stand for `words`, each as at the beginning of a text and behind a space.

    Raises:
        InvalidRequest: a word has no tokens, or there are more than vLLM takes.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        bare, spaced = (
            tuple(vocab.tokenize(prefix + word.lstrip(), special=True, most=MAX_BAD_WORD_TOKENS))
            for prefix in ("", " ")
        )
        if not bare:
            raise InvalidRequest("bad_words must not hold a text without tokens", param="bad_words")
        found.append(bare)
        if spaced and spaced[0] != bare[0] and len(spaced) == len(bare):
            found.append(spaced)
    if len(found) > MAX_BAD_WORDS or sum(map(len, found)) > MAX_BAD_WORD_TOKENS:
        most = f"{MAX_BAD_WORDS} token sequences and {MAX_BAD_WORD_TOKENS} tokens"
        raise InvalidRequest(f"bad_words must not make more than {most}", param="bad_words")
    return tuple(found)


def forbidden_next(sequences: Iterable[Sequence[int]], output: Sequence[int]) -> list[int]:
    """Return the tokens that would complete one of `sequences` behind `output`."""
    made = []
    for *before, last in sequences:
        if len(before) <= len(output) and list(output[len(output) - len(before) :]) == before:
            made.append(last)
    return made
