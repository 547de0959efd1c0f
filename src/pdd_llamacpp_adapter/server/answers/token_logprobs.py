"""Logprobs in OpenAI's shapes, of chat and of legacy completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_core.timeline import ShownToken, TokenLogprob
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.server.wire.sampling_fields import Details

_LEAST = -9999.0
"""For minus infinity, which JSON does not have; vLLM's own choice."""


class TokenNames:
    """Names of tokens for people. `vocab` is a `Vocabulary`; by `details` tokens may be called by their ids."""

    def __init__(self, vocab: Any, details: Details | None = None) -> None:
        self._vocab = vocab
        self._by_id = details is not None and details.return_tokens_as_token_ids

    def is_text(self, token_id: int) -> bool:
        """Whether the token adds bytes to an answer: control tokens do not."""
        return bool(self._vocab.piece(token_id))

    def data(self, token_id: int) -> bytes:
        """Return the token's bytes; a control token has those of its own name."""
        piece: bytes = self._vocab.piece(token_id)
        known = 0 <= token_id < self._vocab.size
        return piece or (str(self._vocab.raw_tokens[token_id]).encode() if known else b"")

    def text(self, token_id: int) -> str:
        """Return the token as text, with replacement characters for parts of characters."""
        return f"token_id:{token_id}" if self._by_id else self.data(token_id).decode("utf-8", "replace")


class TextOffsets:
    """Where the tokens of one answer begin in its text; each must be asked for once, in order. `vocab` as above.

    By each token's own text: that which is shown with it may have waited, as the beginning of a stop string does.
    """

    def __init__(self, vocab: Any) -> None:
        self._detokenizer = Detokenizer(vocab.piece)
        self._length = 0

    def of(self, token_id: int) -> int:
        """Return how many characters are complete before the next token, `token_id`."""
        begins = self._length
        self._length += len(self._detokenizer.push(token_id))
        return begins


def chat_logprobs(tokens: Iterable[ShownToken], names: TokenNames) -> list[Json]:
    """Return ``logprobs.content``, one entry per token, with its maker as the additional `source`."""
    return [
        {
            **_entry(token.logprobs.chosen, names),
            "top_logprobs": [_entry(top, names) for top in token.logprobs.top],
            "source": str(token.source),
        }
        for token in tokens
        if token.logprobs is not None
    ]


def completion_logprobs(tokens: Iterable[ShownToken], names: TokenNames, begins: TextOffsets) -> Json:
    """Return the `logprobs` of a legacy completion, or of the next `tokens` of one.

    The answer's own token is among its `top_logprobs` in any case, as in OpenAI's API and in vLLM.
    """
    texts: list[str] = []
    chosen: list[float] = []
    tops: list[dict[str, float]] = []
    offsets: list[int] = []
    for token in tokens:
        offset = begins.of(token.token_id)
        if token.logprobs is not None:
            texts.append(names.text(token.token_id))
            chosen.append(_finite(token.logprobs.chosen.logprob))
            # two ids can have one text: the likelier one, which comes first, keeps the place, but for the answer's
            best: dict[str, float] = {}
            for top in token.logprobs.top:
                best.setdefault(names.text(top.token_id), _finite(top.logprob))
            tops.append({**best, texts[-1]: chosen[-1]})
            offsets.append(offset)
    return {"tokens": texts, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}


def _entry(token: TokenLogprob, names: TokenNames) -> Json:
    data = names.data(token.token_id)
    return {"token": names.text(token.token_id), "logprob": _finite(token.logprob), "bytes": list(data)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
