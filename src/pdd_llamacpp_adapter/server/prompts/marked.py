"""What of a chat's prompt must stay when it is refined: parts that the client marked, and the tools.

A client marks a content part with ``"pdd_protect": true``. Roles and system prompts need no mark, see
`pdd_core.refinement.protect`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.history import common_prefix
from pdd_llamacpp_adapter.engine.template_messages import JOINT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_core.refinement.spans import Span
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

MARK = "pdd_protect"
_JOINTS = (JOINT, "")
"""What most templates put between the parts of one message: see `ContentFormat`."""


@dataclass(frozen=True, slots=True)
class MarkedPart:
    """A part of a message's content that is to stay."""

    texts: tuple[str, ...]
    """All parts of the message's content."""
    index: int
    """The part's number among them."""
    param: str
    """The part's place in the request."""
    message: int
    """The message's number."""
    ahead: tuple[str, ...] = ()
    """The texts of the messages between the one before with a marked part and this one."""


def marked_parts(
    messages: Sequence[Any], param: str, *, instructions: str | None = None
) -> tuple[MarkedPart, ...]:
    """Return the marked parts of messages that were found well-formed.

    Args:
        messages: as the client sent them.
        param: their place in the request.
        instructions: the system prompt, where it is none of them.

    Raises:
        InvalidRequest: a mark is neither true nor false.
    """
    marked, ahead = list[MarkedPart](), [instructions or ""]
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [content]
        found = list(_marked(parts, number, f"{param}[{number}].content"))
        marked += [replace(part, ahead=tuple(ahead)) for part in found]
        if found:
            ahead.clear()
        else:
            ahead += map(_text, parts)
    return tuple(marked)


def _marked(parts: list[Any], number: int, where: str) -> Iterable[MarkedPart]:
    texts = tuple(map(_text, parts))
    for index, (part, text) in enumerate(zip(parts, texts, strict=True)):
        mark = part.get(MARK, False) if isinstance(part, dict) else False
        if not isinstance(mark, bool):
            name = f"{where}[{index}].{MARK}"
            raise InvalidRequest(f"{name} must be true or false", param=name)
        if mark and text.strip():
            yield MarkedPart(texts, index, f"{where}[{index}]", number)


def _text(part: Any) -> str:
    if not isinstance(part, dict):
        return part if isinstance(part, str) else ""
    return next((part[kind] for kind in ("text", "refusal") if isinstance(part.get(kind), str)), "")


def spans_of_parts(parts: Sequence[MarkedPart], prompt: Sequence[int], vocab: Vocabulary) -> list[Span]:
    """Return where in `prompt` the parts are, as spans of tokens.

    Raises:
        InvalidRequest: a part is not in the prompt as it was sent: the chat template left it out or changed it.
    """
    pieces = [vocab.piece(token) for token in prompt]
    ends, text = list(accumulate(map(len, pieces))), b"".join(pieces)
    spans, behind = list[tuple[int, int]](), 0
    for _, group in groupby(parts, key=lambda part: part.message):
        of_message = list(group)
        # a message that the template leaves out may be found in this one: then what is ahead does not count
        ahead = _behind(text, of_message[0].ahead, behind)
        places, end = _places(of_message[0].texts, text, ahead, behind)
        behind = ahead if end is None else end
        for part in of_message:
            wanted = part.texts[part.index].strip().encode()
            found = _find(wanted, text, places[part.index], 0)
            if found < 0:
                problem = "is marked, but the model's chat template does not put it into the prompt as it is"
                raise InvalidRequest(f"{part.param} {problem}", param=part.param)
            spans.append((bisect_right(ends, found), bisect_right(ends, found + len(wanted) - 1) + 1))
    return spans


def _places(texts: Sequence[str], text: bytes, ahead: int, behind: int) -> tuple[list[int], int | None]:
    """Return behind which position in `text` each of a message's parts is, and where the message ends.

    The whole message is looked for first, since a short part's words are in other places too. If it is not there
    as one, its parts are where they follow one another, and its end is not known.
    """
    for joint in _JOINTS:
        content = joint.join(filter(None, texts))
        # templates trim; and of several messages with one content, each has its own place
        stripped = content.strip().encode()
        begin = _find(stripped, text, ahead, behind)
        if begin >= 0:
            starts = accumulate((len(part.encode()) + len(joint) if part else 0 for part in texts), initial=begin)
            margin = len(content.encode()) - len(content.lstrip().encode())
            return [max(begin, start - margin) for start in starts][:-1], begin + len(stripped)
    places, at = list[int](), ahead
    for part in texts:
        places.append(at)
        at = _behind(text, [part], at)
    return places, None


def _behind(text: bytes, contents: Iterable[str], start: int) -> int:
    """Return the position in `text` behind all of `contents`, one after the other, as far as they are there."""
    for content in contents:
        stripped = content.strip().encode()
        found = text.find(stripped, start)
        start = start if found < 0 else found + len(stripped)
    return start


def _find(wanted: bytes, text: bytes, *starts: int) -> int:
    """Return where `wanted` is behind the first of `starts` behind which it is at all; -1 if there is none."""
    return next((found for start in starts if (found := text.find(wanted, start)) >= 0), -1)


def span_of_tools(prompt: Sequence[int], without: Sequence[int]) -> Span | None:
    """Return the span of `prompt` in which the same chat `without` tools differs; None where it does not."""
    same = common_prefix(prompt, without)
    most = min(len(prompt), len(without)) - same
    after = min(most, common_prefix(prompt[::-1], without[::-1]))
    return (same, len(prompt) - after) if same < len(prompt) - after else None
