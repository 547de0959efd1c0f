"""Which tokens end an answer: decided here, for both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest


def stop_ids(request: AnswerRequest, *, told: CloudInfo | None, vocab: Vocabulary | None) -> frozenset[int]:
    """Return the ids that end an answer, and belong to it.

    An answer ends where the cloud would end it, also one that the device makes alone. llama.cpp's own idea of an
    end counts only while no cloud has told: it holds tokens that vLLM would go on behind.

    Args:
        request: its `stop_token_ids` count in any case, a model's own ends unless it has `ignore_eos`.
        told: what the cloud told about itself; None while it has not, and where there is none.
        vocab: the device's; None where it has no part.
    """
    own: frozenset[int] = frozenset()
    if request.ignore_eos:
        pass
    elif told is not None:
        own = frozenset(told.tokenizer.eos_ids)
    elif vocab is not None:
        own = vocab.stop_ids
    return own | frozenset(request.stop_token_ids)
