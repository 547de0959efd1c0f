"""What refinement must not drop: the template, the system prompt, the question, what the client marked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pdd_core.refinement.capture import LEAST_WINDOW
from pdd_core.refinement.spans import lines, merge_spans, spans_of
from pdd_core.refinement.tool_definitions import tool_definitions
from pdd_core.refinement.turns import HEADER, Chat, locate, read_chat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.refinement.spans import Span

TAIL = 128
"""Tokens of the last paragraph that are protected, its end: a question, not a document."""
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*\S")


def protected_spans(
    token_ids: Sequence[int],
    pieces: Sequence[str],
    special_ids: frozenset[int],
    *,
    marked: Sequence[Span] = (),
    tail: int = TAIL,
) -> tuple[Span, ...]:
    """Return the spans of a prompt that refinement keeps: sorted, disjoint, merged.

    These are the first and the last token; every control token, with the role's header after it; system prompts,
    with the tools in them; tools that Llama's template puts into a user turn; the last paragraph of the last user
    turn; all after that turn but the results of tools; and `marked`. Of a prompt without roles: control
    tokens, the first and the last token, the last paragraph, and `marked`.

    Args:
        token_ids: the prompt.
        pieces: the text of each token, see `RefinePrompt.pieces`.
        special_ids: control tokens of the model. Text that merely looks like one is text.
        marked: spans of the client's choice; what lies outside of the prompt is ignored.
        tail: protect at most so many tokens of the last paragraph, its end.
    """
    length = len(token_ids)
    chat = read_chat(token_ids, pieces, special_ids)
    user = _last_user(chat)
    start, end = _content(chat, user, length)
    paragraph = _last_paragraph(pieces, (start, end), tail)
    before = chat.turns[0].span[0] if chat.turns else 0  # where DeepSeek's templates have the system prompt
    after = chat.turns[user + 1 :] if user is not None else chat.turns[-1:]
    return merge_spans(
        [
            (0, max(1, before)),
            (length - 1, length),
            *spans_of(chat.template),
            *(turn.span for turn in chat.turns if turn.role == "system"),
            *(tool_definitions(pieces, turn.content) for turn in chat.turns if turn.role == "user"),
            paragraph,
            (max(paragraph[1], end - tail), end),  # blanks after the question
            *(turn.span for turn in after if turn.role != "tool"),
            *marked,
        ],
        length,
    )


def question_span(
    token_ids: Sequence[int], pieces: Sequence[str], special_ids: frozenset[int], *, tail: int = TAIL
) -> Span:
    """Return the span of the question: the last paragraph of the last user turn, its end.

    At most `tail` tokens. Of a prompt without roles, the last paragraph. The span is empty where there is no text.
    """
    chat = read_chat(token_ids, pieces, special_ids)
    return _last_paragraph(pieces, _content(chat, _last_user(chat), len(token_ids)), tail)


def question_window(
    token_ids: Sequence[int], pieces: Sequence[str], special_ids: frozenset[int], *, most: int
) -> int:
    """Return how many of a prompt's last tokens say what matters in it: its question, and the template behind.

    A last paragraph that does not fit into `most` tokens is more than a question: of it count the last sentences
    or lines, with the template `LEAST_WINDOW` tokens at least. No more of the prompt's end is looked at than can
    matter, so this takes as long for any prompt; what comes before the first role there counts as the user's.
    """
    begin = max(0, len(token_ids) - most - HEADER)
    ids, texts = token_ids[begin:], pieces[begin:]
    chat = read_chat(ids, texts, special_ids)
    user = _last_user(chat)
    content = (0, chat.turns[0].span[0]) if user is None and chat.turns else _content(chat, user, len(ids))
    start, end = _last_paragraph(texts, content, len(ids))
    behind = [len(ids) - start - first for first, _ in lines(texts[start:end])]
    if not behind or behind[0] <= most:
        return behind[0] if behind else min(most, len(ids))
    return min((tokens for tokens in behind if LEAST_WINDOW <= tokens <= most), default=most)


def _last_user(chat: Chat) -> int | None:
    users = [number for number, turn in enumerate(chat.turns) if turn.role == "user"]
    return users[-1] if users else None


def _content(chat: Chat, user: int | None, length: int) -> Span:
    """Return the text of the turn `user`, the whole prompt if it has no turns, nothing if none is the user's."""
    if user is not None:
        return chat.turns[user].content
    return (length, length) if chat.turns else (0, length)


def _last_paragraph(pieces: Sequence[str], content: Span, tail: int) -> Span:
    start, end = content
    while end > start and pieces[end - 1].isspace():
        end -= 1
    start = max(start, end - max(tail, 0))
    for _, (_, last) in locate(pieces, _BLANK_LINE, (start, end)):
        start = last - 1  # the token with the first character after the blank line
    return start, end
