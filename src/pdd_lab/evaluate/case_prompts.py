"""A case as the model's prompt: by its chat template, or as plain text for a base model."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidRequest, ModelError
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.protect import protected_spans

if TYPE_CHECKING:
    from pdd_core.refinement.spans import Span
    from pdd_lab.evaluate.cases import ExamCase
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

SYSTEM = "You answer questions about a text."


def build_prompt(case: ExamCase, vocab: Vocabulary) -> RefinePrompt:
    """Return the full prompt of a case, with the spans that refinement keeps."""
    ids = _chat(case, vocab) or _plain(case, vocab)
    pieces = tuple(vocab.spelt(token) for token in ids)
    special = frozenset(token for token in set(ids) if vocab.is_special(token))
    return RefinePrompt(tuple(ids), pieces, special, protected_spans(ids, pieces, special))


def opening_ids(case: ExamCase, vocab: Vocabulary) -> list[int]:
    """Return the answer's first tokens, which are put into the model's mouth.

    They come after full and refined prompts alike, and are no part of what is scored or refined: a cloud that
    captures attention has not decoded yet.
    """
    return vocab.tokenize(case.opening if _has_template(vocab) else f" {case.opening}") if case.opening else []


def evidence_span(case: ExamCase, prompt: RefinePrompt) -> Span | None:
    """Return the tokens of the prompt that hold the case's answer; None where there is no such place."""
    if not case.evidence:
        return None
    ends = list(accumulate(map(len, prompt.pieces)))
    begin = "".join(prompt.pieces).index(case.evidence)
    # the token that the first character belongs to, and the one behind that of the last
    return bisect_right(ends, begin), bisect_left(ends, begin + len(case.evidence)) + 1


def _has_template(vocab: Vocabulary) -> bool:
    try:
        return bool(vocab.chat_template)
    except ModelError:
        return False


def _chat(case: ExamCase, vocab: Vocabulary) -> list[int] | None:
    if not _has_template(vocab):
        return None
    user = {"role": "user", "content": f"{case.document}\n\n{case.question}"}
    try:
        return vocab.render_chat([{"role": "system", "content": SYSTEM}, user])
    except InvalidRequest:
        return vocab.render_chat([user])


def _plain(case: ExamCase, vocab: Vocabulary) -> list[int]:
    # One paragraph from the question on, which is therefore protected.
    return vocab.tokenize(f"{case.document}\n\nQuestion: {case.question}\nAnswer:", add_bos=True)
