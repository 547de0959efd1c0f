"""The items of a response's output, each with the events that tell of its making.

https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.answering import new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_llamacpp_adapter.server.wire.json_body import Json

Told = tuple[str, "Json"]
"""An event's type, and its fields besides `output_index` and `sequence_number`."""


class TextKind(StrEnum):
    """Items that hold text; the values are the types of their content parts and begin those of their events."""

    MESSAGE = "output_text"
    """What the assistant says to the user."""
    REASONING = "reasoning_text"
    """What the model thinks before it speaks."""


class TextItem:
    """An item in the making, with one content part of text."""

    def __init__(self, kind: TextKind) -> None:
        self.kind = kind
        self._is_message = kind is TextKind.MESSAGE
        self._id = new_id("msg_" if self._is_message else "rs_")
        self._texts: list[str] = []
        self._logprobs: list[Json] = []

    def item(self, status: str) -> Json:
        """Return the item as it is now."""
        return self._item(status, [self._part()])

    def opened(self) -> Iterator[Told]:
        """Return the events that begin it."""
        yield "response.output_item.added", {"item": self._item("in_progress", [])}
        yield "response.content_part.added", {**self._place(), "part": self._part()}

    def delta(self, text: str, logprobs: list[Json]) -> Told:
        """Take `text` in and return the event that tells of it."""
        self._texts.append(text)
        self._logprobs += logprobs
        return f"response.{self.kind}.delta", {**self._place(), "delta": text, **self._extras(logprobs)}

    def closed(self, status: str) -> Iterator[Told]:
        """Return the events that end it."""
        text = "".join(self._texts)
        yield f"response.{self.kind}.done", {**self._place(), "text": text, **self._extras(self._logprobs)}
        yield "response.content_part.done", {**self._place(), "part": self._part()}
        yield "response.output_item.done", {"item": self.item(status)}

    def _item(self, status: str, content: list[Json]) -> Json:
        kind: Json = (
            {"type": "message", "role": "assistant"} if self._is_message else {"type": "reasoning", "summary": []}
        )
        return {"id": self._id, "status": status, **kind, "content": content}

    def _part(self) -> Json:
        extras = {"annotations": [], "logprobs": list(self._logprobs)} if self._is_message else {}
        return {"type": str(self.kind), "text": "".join(self._texts), **extras}

    def _place(self) -> Json:
        return {"item_id": self._id, "content_index": 0}

    def _extras(self, logprobs: list[Json]) -> Json:
        return {"logprobs": list(logprobs)} if self._is_message else {}


class CallItem:
    """A call of a function in the making; `index` is its position among the answer's calls."""

    def __init__(self, index: int, call_id: str, name: str) -> None:
        self.index = index
        self._id = new_id("fc_")
        self._head: Json = {"type": "function_call", "call_id": call_id, "name": name}
        self._arguments: list[str] = []

    def item(self, status: str) -> Json:
        """Return the item as it is now."""
        return {"id": self._id, "status": status, **self._head, "arguments": "".join(self._arguments)}

    def opened(self) -> Iterator[Told]:
        """Return the event that begins it."""
        yield "response.output_item.added", {"item": self.item("in_progress")}

    def delta(self, arguments: str) -> Told:
        """Take `arguments` in and return the event that tells of it."""
        self._arguments.append(arguments)
        return "response.function_call_arguments.delta", {"item_id": self._id, "delta": arguments}

    def closed(self, status: str) -> Iterator[Told]:
        """Return the events that end it."""
        done = {"item_id": self._id, "name": self._head["name"], "arguments": "".join(self._arguments)}
        yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"item": self.item(status)}


OpenItem = TextItem | CallItem
