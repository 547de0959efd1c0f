"""The turns of a chat, read off its tokens: who speaks where, and which tokens are the template's.

A template is known by how it looks, not by name: a role is written in a control token (``<|user|>``, ``[INST]``),
or in a short header after one (``<|im_start|>user``, ``<|start_header_id|>user<|end_header_id|>``).
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pdd_core.refinement.spans import Span

HEADER = 8
"""Tokens of the longest header: a role, perhaps with a name, and the newline after it."""

Role = Literal["system", "user", "tool", "other"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer", "system_prompt", "available_tools"), "system"),
    **dict.fromkeys(("user", "human", "inst"), "user"),
    **dict.fromkeys(("tool", "ipython", "function", "observation", "tool_results", "tool_response"), "tool"),
    **dict.fromkeys(("assistant", "model", "chatbot", "bot", "gpt", "/inst"), "other"),
    **dict.fromkeys(("/system_prompt", "/available_tools", "/tool_results", "/tool_response"), "other"),
}
"""What a control token or a header says -> the role that speaks from there on."""
PLAIN: dict[str, Role] = {"[INST]": "user", "[/INST]": "other", "<<SYS>>": "system", "<</SYS>>": "user"}
"""Marks of Llama 2 and of Mistral's first templates, which are text."""

_HEADER_ROLE = re.compile(r"\s*(\w+)(?: +\w+=\S+)*\s*")
_PLAIN_MARK = re.compile("|".join(map(re.escape, PLAIN)))
_TOOL_TAG = re.compile(r"</?tool_response>")
_TOOL_START = re.compile(r"\s*<tool_response>")


@dataclass(frozen=True, slots=True)
class Turn:
    """A stretch of the prompt with one speaker."""

    role: Role
    span: Span
    """From the token that opens it to the one that opens the next."""
    content: Span
    """Its text, without the template's tokens before and after it."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt as turns."""

    turns: list[Turn] = field(default_factory=list)
    """In order; none for a raw completion."""
    template: set[int] = field(default_factory=set)
    """Positions of control tokens, of the headers after them, and of marks in the text."""


def read_chat(token_ids: Sequence[int], pieces: Sequence[str], special_ids: frozenset[int]) -> Chat:
    """Return the turns of a prompt, with arguments as for `RefinePrompt`. What comes before them is in none."""
    specials = [index for index, token in enumerate(token_ids) if token in special_ids]
    template = set(specials)
    starts = dict(_openings(specials, token_ids, pieces, template))
    if not starts:
        template = set(specials)
        starts = dict(_plain_marks(pieces, template))
    bounds = pairwise([*starts, len(token_ids)])
    turns = [_turn(role, span, pieces, template) for role, span in zip(starts.values(), bounds, strict=True)]
    for number, (turn, after) in enumerate(pairwise(turns)):
        # A tool's result in the user's name, and the tag around it is a control token.
        if turn.role == "user" and after.role == "tool" and turn.content[0] == turn.content[1]:
            turns[number] = Turn("tool", turn.span, turn.content)
    return Chat(turns, template)


def locate(pieces: Sequence[str], mark: re.Pattern[str], span: Span) -> Iterator[tuple[str, Span]]:
    """Yield each match of `mark` in the text of `span`, with the tokens that it touches."""
    begin, end = span
    ends = list(accumulate(map(len, pieces[begin:end])))
    for match in mark.finditer("".join(pieces[begin:end])):
        first, last = (begin + bisect_right(ends, char) for char in (match.start(), match.end() - 1))
        yield match[0], (first, last + 1)


def _openings(
    specials: list[int], token_ids: Sequence[int], pieces: Sequence[str], template: set[int]
) -> Iterator[tuple[int, Role]]:
    """Yield where turns open, and add their headers to `template`."""
    openers: set[int] = set()
    for index, following in pairwise([*specials, len(token_ids)]):
        role = ROLES.get(_name(pieces[index]))
        end = _header_end(pieces, index + 1, following)
        text = "".join(pieces[index + 1 : end])
        said = _HEADER_ROLE.fullmatch(text)
        if role is None and said:
            role = ROLES.get(said[1].lower())
            if role is not None:
                openers.add(token_ids[index])
            elif token_ids[index] in openers:
                role = "other"  # a role that we do not know
            elif _name(pieces[index]) != "channel":
                continue
        elif not text.isspace():
            end = index + 1
        template.update(range(index + 1, end))
        if role is not None:
            yield index, role


def _header_end(pieces: Sequence[str], start: int, following: int) -> int:
    """Return where the header from `start` on ends: after a newline, at the next control token; or at `start`."""
    limit = min(following, start + HEADER)
    end = start
    while end < limit and "\n" not in pieces[end]:
        end += 1
    if end == limit:
        return end if end == following else start
    end += 1
    while end < limit and pieces[end].isspace():  # a blank line may be one token or two
        end += 1
    return end


def _name(piece: str) -> str:
    return re.sub(r"[^a-z/_]", "", piece.lower()).strip("_").removesuffix("_token")


def _plain_marks(pieces: Sequence[str], template: set[int]) -> Iterator[tuple[int, Role]]:
    found = list(locate(pieces, _PLAIN_MARK, (0, len(pieces))))
    if any(mark == "[INST]" for mark, _ in found):
        for mark, (start, end) in found:
            template.update(range(start, end))
            yield start, PLAIN[mark]


def _turn(role: Role, span: Span, pieces: Sequence[str], template: set[int]) -> Turn:
    if role == "user" and _TOOL_START.match("".join(pieces[slice(*_content(span, template))][: 2 * HEADER])):
        role = "tool"  # Qwen's templates give a tool's result in the user's name
        for _, (first, last) in locate(pieces, _TOOL_TAG, span):
            template.update(range(first, last))
    return Turn(role, span, _content(span, template))


def _content(span: Span, template: set[int]) -> Span:
    start, end = span
    while start < end and start in template:
        start += 1
    while end > start and end - 1 in template:
        end -= 1
    return start, end
