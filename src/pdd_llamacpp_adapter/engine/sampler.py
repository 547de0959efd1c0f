"""Choosing the next token, with vLLM's meanings in vLLM's order (``vllm.v1.sample.sampler.Sampler``).

The cloud's tokens count as output like the device's own, so penalties, min_tokens and the grammar go on across the
handoff.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.bad_words import forbidden_next
from pdd_llamacpp_adapter.engine.logprobs import log_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_core.timeline import TokenLogprobs
    from pdd_llamacpp_adapter.engine.grammar import GrammarMatcher
    from pdd_llamacpp_adapter.request import AnswerRequest

_GREEDY_BELOW = 1e-5
"""vLLM's ``_SAMPLING_EPS``."""
_SEED_MASK = 0xFFFF_FFFF_FFFF_FFFF
_MOST = float(np.finfo(np.float32).max)
_LEAST = -_MOST
"""Below every logit but that of a masked token."""


class Sampler:
    """The sampler of one answer, at a position of it.

    Noise is keyed by seed and position: the same seed with the same handoff position gives the same answer,
    however many tokens each side made. It cannot be the cloud's noise, which comes from another generator.

    Args:
        request: what the client asked for.
        stop_ids: ids that end the answer; not before `AnswerRequest.min_tokens`.
        output: the answer's ids so far, from both sides.
        matcher: the grammar, already advanced over `output`; None where there is none.
        bad_words: `bad_word_ids` of the request.
    """

    def __init__(
        self,
        request: AnswerRequest,
        *,
        stop_ids: Iterable[int],
        output: Sequence[int] = (),
        matcher: GrammarMatcher | None = None,
        bad_words: Sequence[Sequence[int]] = (),
    ) -> None:
        self._request = request
        self._bad_words = bad_words
        allowed = request.allowed_token_ids
        self._allowed_ids = None if allowed is None else np.unique(np.array(allowed, dtype=np.int64))
        self._stop_ids = np.fromiter(stop_ids, dtype=np.int64)
        self._bias_ids = np.fromiter(request.logit_bias.keys(), dtype=np.int64)
        self._bias = np.fromiter(request.logit_bias.values(), dtype=np.float32)
        self._matcher = matcher
        self._foreign_ends = _foreign_ends(matcher, self._stop_ids)
        self._position = len(output)
        seed = secrets.randbits(64) if request.seed is None else request.seed
        self._seed = seed & _SEED_MASK
        self._penalises = request.repetition_penalty != 1.0 or bool(
            request.presence_penalty or request.frequency_penalty
        )
        self._output = list(output)
        self._seen: np.ndarray | None = None
        self._count: np.ndarray | None = None

    def sample(self, logits: np.ndarray) -> tuple[int, TokenLogprobs | None]:
        """Return the next token and, where the request asks for them, its logprobs; count it as output.

        Args:
            logits: float32 of shape (n_vocab,); changed in place.

        Raises:
            DeviceEngineFailed: the grammar has outgrown llguidance's limits, or `logits` are not numbers; no token
                was chosen.
        """
        if self._matcher is not None:
            self._apply_grammar(logits, self._matcher)
        top = self._request.logprobs
        raw = None if top is None else logits.copy()
        if not np.isfinite(logits.max()):  # of one that is not a number, the maximum is none either
            raise DeviceEngineFailed("llama.cpp has computed logits that are not numbers")
        self._forbid(logits)
        token = self._choose(logits)
        if self._matcher is not None and self._matcher.advance((token,)) is not None:
            raise DeviceEngineFailed("the grammar rejects a token that it allowed")
        self._position += 1
        if self._bad_words:
            self._output.append(token)
        if self._penalises and self._seen is not None and self._count is not None:
            self._seen[token] = True
            self._count[token] += 1
        return token, None if raw is None or top is None else log_probabilities(raw, token, top)

    def _apply_grammar(self, logits: np.ndarray, matcher: GrammarMatcher) -> None:
        """On the raw logits, so that logprobs see it too: ``vllm.v1.worker.gpu_model_runner.sample_tokens``."""
        allowed = matcher.mask(logits.size)
        allowed[self._foreign_ends[self._foreign_ends < logits.size]] = False
        logits[~allowed] = -np.inf

    def _forbid(self, logits: np.ndarray) -> None:
        """``Sampler.apply_logits_processors``: the tokens that are allowed, less those that end a bad word."""
        if self._allowed_ids is None and not self._bad_words:
            return
        if self._allowed_ids is not None:
            ids = self._allowed_ids[self._allowed_ids < logits.size]
            allowed = logits[ids]
            logits[:] = -np.inf
            logits[ids] = allowed
        logits[[token for token in forbidden_next(self._bad_words, self._output) if token < logits.size]] = -np.inf
        if logits.max() == -np.inf:
            raise DeviceEngineFailed("allowed_token_ids, bad_words and the grammar leave no token")

    def _choose(self, logits: np.ndarray) -> int:
        request = self._request
        if self._bias_ids.size:
            known = self._bias_ids < logits.size
            logits[self._bias_ids[known]] += self._bias[known]
        if self._position < request.min_tokens:
            self._forbid_stopping(logits)
        if self._penalises:
            self._apply_penalties(logits)
        if request.temperature < _GREEDY_BELOW:
            return int(np.argmax(logits))
        with np.errstate(over="ignore"):  # what is so far below the most likely has no chance, or a masked token's
            logits -= logits.max()
            logits /= min(request.temperature, _MOST)
        ids = np.flatnonzero(logits >= _min_p_threshold(request.min_p))
        ids = _top_k_top_p(logits, ids, request.top_k, request.top_p)
        return self._draw(logits, ids)

    def _forbid_stopping(self, logits: np.ndarray) -> None:
        """``MinTokensLogitsProcessor``; but where nothing else is left, as to a complete grammar, it may end."""
        ids = self._stop_ids[self._stop_ids < logits.size]
        before = logits[ids]
        logits[ids] = -np.inf
        if logits.max() == -np.inf:
            logits[ids] = before

    def _apply_penalties(self, logits: np.ndarray) -> None:
        """``vllm.model_executor.layers.utils.apply_penalties``: repetition sees the prompt, the others do not."""
        seen, count = self._counts(logits.size)
        if self._request.repetition_penalty != 1.0:
            penalty = self._request.repetition_penalty
            ids = np.flatnonzero(seen & np.isfinite(logits))
            with np.errstate(over="ignore"):
                penalised = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
            logits[ids] = np.clip(penalised, _LEAST, _MOST)  # it forbids nothing
        logits -= self._request.frequency_penalty * count
        logits -= self._request.presence_penalty * (count > 0)

    def _counts(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        if self._seen is None or self._count is None:
            output = np.array(self._output, dtype=np.int64)
            self._count = np.bincount(output[output < size], minlength=size).astype(np.float32)
            self._seen = self._count > 0
            prompt = np.array(self._request.prompt_token_ids, dtype=np.int64)
            self._seen[prompt[prompt < size]] = True
        return self._seen, self._count

    def _draw(self, logits: np.ndarray, ids: np.ndarray) -> int:
        weights = np.exp(logits[ids].astype(np.float64) - logits[ids].max())
        cumulative = np.cumsum(weights)
        noise = np.random.default_rng([self._seed, self._position]).random()
        # noise < 1, but its product with the total may round up to the total
        index = min(int(np.searchsorted(cumulative, noise * cumulative[-1], side="right")), ids.size - 1)
        return int(ids[index])


def _foreign_ends(matcher: GrammarMatcher | None, stop_ids: np.ndarray) -> np.ndarray:
    """Return the ends of sequence that would not end this answer, though others would.

    The grammar was compiled with the device's idea of an end; the cloud may have told another since.
    """
    ends = np.array(() if matcher is None else sorted(matcher.eos_ids), dtype=np.int64)
    foreign: np.ndarray = ends[~np.isin(ends, stop_ids)]
    return foreign if foreign.size < ends.size else foreign[:0]


def _min_p_threshold(min_p: float) -> float:
    """Return the logit of `min_p` times the highest probability, whose own logit is 0."""
    return math.log(min_p) if min_p > 0 else _LEAST


def _top_k_top_p(logits: np.ndarray, ids: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Return those of `ids` that stay, ascending: ``apply_top_k_top_p_pytorch``, ties at the k-th included."""
    if 0 < top_k < ids.size:
        ids = ids[logits[ids] >= np.partition(logits[ids], -top_k)[-top_k]]
    if top_p < 1.0:
        ascending = ids[np.argsort(logits[ids], kind="stable")]
        weights = np.exp(logits[ascending].astype(np.float64) - logits[ascending[-1]])
        below = np.cumsum(weights) / weights.sum()
        below[-1] = np.inf  # the most likely token always stays
        ids = np.sort(ascending[below > 1.0 - top_p])
    return ids
