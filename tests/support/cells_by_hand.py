"""Cells whose numbers say where they belong, a cloud that streams them, and an engine that checks them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import anyio
import numpy as np

from pdd_core.errors import CloudRefused, DeviceEngineFailed
from pdd_core.handoff import KV_HANDOVER
from pdd_core.kv.frames import END, FrameReader, header
from pdd_core.kv.geometry import KVGeometry, KVPart, RopeGeometry
from pdd_core.kv.pieces import packed_part, pieces_between
from pdd_llamacpp_adapter.cloud.cells_stream import read_cells

LAYERS, HEADS, SIZE = 2, 2, 32
WHOLE = [KVPart(layers=(0, LAYERS), heads=(0, HEADS))]
BY_HEAD = [KVPart(layers=(0, LAYERS), heads=(head, head + 1)) for head in range(HEADS)]
FAULTS = ("cut", "corrupt", "reordered", "other bytes", "stall", "refused", "early end")
"""What can happen to a stream before one of its chunks."""


def geometry(parts=WHOLE, **changes):
    fields = {
        "num_layers": LAYERS,
        "num_kv_heads": HEADS,
        "head_size": SIZE,
        "key_type": "f16",
        "value_type": "f16",
    }
    fields |= {"key_rotation": 1, "value_rotation": 1, "rope": RopeGeometry(theta=10000.0, rotary_dim=SIZE)}
    return KVGeometry(**fields | {"parts": parts} | changes)


def cells(start, end, layers=(0, LAYERS), heads=(0, HEADS)):
    """Keys say their position, layer and head; values are the negative of that."""
    numbers = np.zeros((layers[1] - layers[0], end - start, heads[1] - heads[0], SIZE), dtype=np.float32)
    numbers[..., 0] = np.arange(start, end)[None, :, None]
    numbers[..., 1] = np.arange(*layers)[:, None, None]
    numbers[..., 2] = np.arange(*heads)[None, None, :]
    return numbers, -numbers


def frames_of(start, end, agreed):
    """The frames of a whole stream, each as bytes."""
    import zlib

    for piece in pieces_between(start, end):
        for number, part in enumerate(agreed.parts):
            payload = packed_part(*cells(piece.start, piece.end, part.layers, part.heads), agreed)
            yield header(number, piece.start, piece.tokens, zlib.crc32(payload)) + payload
    yield END


@dataclass
class CellsCloud:
    """What a fake cloud is mixed with. A stream's chunks are half frames, `pause` seconds apart.

    `faults`: per stream, in the order in which they are asked for, what happens and before which chunk.
    """

    agreed: object = field(default_factory=geometry)
    faults: tuple = ()
    pause: float = 0.01
    streams: list = field(default_factory=list)
    """Which positions were asked for."""
    open_streams: int = 0
    url: str = "http://cloud/v1"

    async def connected(self, vocab):
        info = await super().connected(vocab)
        info.features, info.kv = (*info.features, KV_HANDOVER), self.agreed
        return info

    async def cells(self, handoff_id, start, end, geometry, *, silence_s, on_bytes):
        assert geometry is self.agreed
        assert 0 <= start < end
        number = len(self.streams)
        self.streams.append((start, end))
        fault = self.faults[number] if number < len(self.faults) else None
        if fault is not None and fault[0] == "refused":
            raise CloudRefused("ask again", status=503)
        self.open_streams += 1
        stream = SimpleNamespace(
            response=SimpleNamespace(aiter_bytes=lambda: self._chunks(start, end, fault)), close=self._closed
        )
        frames = read_cells(stream, FrameReader(geometry, start, end), silence_s=silence_s, on_bytes=on_bytes)
        try:
            async for frame in frames:
                yield frame
        finally:
            await frames.aclose()

    async def _closed(self):
        await anyio.lowlevel.checkpoint()
        self.open_streams -= 1

    async def _chunks(self, start, end, fault):
        kind, at = fault or (None, -1)
        sent = list(frames_of(start, end, self.agreed))
        if kind == "reordered":
            first = min(at, len(sent) - 1)
            sent[first], sent[first - 1] = sent[first - 1], sent[first]
        halves = itertools.chain.from_iterable(
            (frame[: len(frame) // 2], frame[len(frame) // 2 :]) for frame in sent
        )
        for index, chunk in enumerate(halves):
            await anyio.sleep(self.pause)
            if index == at:
                match kind:
                    case "cut":
                        raise OSError("reset by peer")
                    case "early end":
                        return
                    case "stall":
                        await anyio.sleep(3600)
                    case "other bytes":
                        yield b"<html>a captive portal</html>"
                    case "corrupt":
                        chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
            yield chunk


@dataclass
class CellsEngine:
    """What a fake engine is mixed with: it holds ids, and takes no cells but the right ones in the right place."""

    kv: object = field(default_factory=lambda: SimpleNamespace(shape="the cloud's", differs_from=lambda _: None))
    similarity: float = 1.0
    added: tuple | None = None
    """Positions of the cells that were added and not joined."""
    joined: int = 0
    """Cells joined, those that were dropped later included."""
    compared: list = field(default_factory=list)

    async def add_cells(self, start, keys, values):
        await anyio.lowlevel.checkpoint()
        end = start + keys.shape[1]
        assert keys.shape == values.shape == (LAYERS, end - start, HEADS, SIZE)
        right, negative = cells(start, end)
        np.testing.assert_array_equal(keys, right)
        np.testing.assert_array_equal(values, negative)
        assert start < end
        assert len(self.held) <= start, "the device holds that already"
        assert self.added is None or end == self.added[0], "a hole, or cells that were added before"
        self.added = (start, end if self.added is None else self.added[1])

    async def join_cells(self, ids):
        await anyio.lowlevel.checkpoint()
        if self.added != (len(self.held), len(ids)) or list(ids[: len(self.held)]) != self.held:
            raise DeviceEngineFailed(f"cells {self.added} do not go between {len(self.held)} and {len(ids)}")
        self.joined += len(ids) - len(self.held)
        self.held.extend(ids[len(self.held) :])
        self.added = None

    async def drop_cells(self):
        await anyio.lowlevel.checkpoint()
        self.added = None

    async def compare_cells(self, start, keys, values):
        await anyio.lowlevel.checkpoint()
        assert start == 0
        assert keys.shape[1] <= len(self.held)
        np.testing.assert_array_equal(keys, cells(0, keys.shape[1])[0])
        self.compared.append(keys.shape[1])
        return self.similarity
