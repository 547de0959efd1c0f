"""What a model's cells look like on the wire: agreed once, in the handshake (``GET /v1/pdd/info``)."""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pdd_core.kv.cell_types import BLOCK, CellType

KV_VERSION = "1"
"""Of all that this package says about bytes. A device that knows another one prefills by itself."""
PIECE_TOKENS: Final = 128
"""Cells of one piece: pieces begin at its multiples."""
MAX_LAYERS = 512
MAX_HEADS = 512
MAX_HEAD_SIZE = 1024
MAX_PARTS = 256

NoKVReason = Literal[
    "not_requested",
    "not_enabled",
    "unsupported",
    "lora",
    "multimodal",
    "too_long",
    "no_room",
    "not_captured",
    "gone",
]


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class RopeGeometry(_Wire):
    """How positions are in the keys: what device and cloud have to have in common."""

    pairs: Literal["halves"] = "halves"
    """Element i of a head is rotated together with i + rotary_dim / 2, as in Hugging Face's models."""
    theta: Annotated[float, Field(gt=0)]
    """Base of the frequencies."""
    rotary_dim: Annotated[int, Field(ge=2, le=MAX_HEAD_SIZE)]
    """Elements of a head that are rotated."""
    scaling: Annotated[str, Field(max_length=32, pattern=r"^[a-z0-9_]*$")] = "default"
    """Hugging Face's ``rope_type``."""
    factor: Annotated[float, Field(gt=0)] = 1.0
    """Of the scaling; 1 without."""


class KVPart(_Wire):
    """The share of one worker: some of the heads (tensor parallel), some of the layers (pipeline parallel)."""

    layers: tuple[Annotated[int, Field(ge=0, le=MAX_LAYERS)], Annotated[int, Field(ge=0, le=MAX_LAYERS)]]
    """Half-open."""
    heads: tuple[Annotated[int, Field(ge=0, le=MAX_HEADS)], Annotated[int, Field(ge=0, le=MAX_HEADS)]]
    """Half-open, KV heads."""

    @property
    def num_layers(self) -> int:
        """How many layers."""
        return self.layers[1] - self.layers[0]

    @property
    def num_heads(self) -> int:
        """How many KV heads."""
        return self.heads[1] - self.heads[0]


class KVGeometry(_Wire):
    """The cells of one model as this server packs them."""

    kind: Literal["cells"] = "cells"
    version: Annotated[str, Field(max_length=16)] = KV_VERSION
    """Of the frames and what is in them: docs/wire.md#versions."""
    num_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)]
    num_kv_heads: Annotated[int, Field(ge=1, le=MAX_HEADS)]
    head_size: Annotated[int, Field(ge=1, le=MAX_HEAD_SIZE)]
    key_type: CellType
    """``q8_0``, ``q4_0`` or ``f16``, as in llama.cpp's caches."""
    value_type: CellType
    """The same of values."""
    key_rotation: Annotated[int, Field(ge=1, le=MAX_HEAD_SIZE)]
    """Size of the pieces in which a head's keys are rotated before they are packed; 1: not rotated."""
    value_rotation: Annotated[int, Field(ge=1, le=MAX_HEAD_SIZE)]
    """The same of values."""
    rope: RopeGeometry
    """How positions are in the keys."""
    piece_tokens: Literal[128] = PIECE_TOKENS
    """Cells of one piece."""
    parts: Annotated[list[KVPart], Field(min_length=1, max_length=MAX_PARTS)]
    """By their number in a frame. Together they have each head of each layer once."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for kind, rotation in ((self.key_type, self.key_rotation), (self.value_type, self.value_rotation)):
            if kind is not CellType.F16 and self.head_size % BLOCK:
                raise ValueError(f"heads of {self.head_size} elements are no whole blocks of {kind}")
            if rotation & (rotation - 1) or self.head_size % rotation:
                raise ValueError(f"heads of {self.head_size} elements cannot be rotated in pieces of {rotation}")
        seen: set[tuple[int, int]] = set()
        for part in self.parts:
            if not (0 <= part.layers[0] < part.layers[1] <= self.num_layers):
                raise ValueError("a part has layers that the model does not have")
            if not (0 <= part.heads[0] < part.heads[1] <= self.num_kv_heads):
                raise ValueError("a part has heads that the model does not have")
            cells = {(layer, head) for layer in range(*part.layers) for head in range(*part.heads)}
            if seen & cells:
                raise ValueError("two parts have the same head of a layer")
            seen |= cells
        if len(seen) != self.num_layers * self.num_kv_heads:
            raise ValueError("no part has some head of a layer")
        return self

    @property
    def head_bytes(self) -> int:
        """Bytes of one head's key and value of one token."""
        return self.key_type.row_bytes(self.head_size) + self.value_type.row_bytes(self.head_size)

    @property
    def cell_bytes(self) -> int:
        """Bytes of one token's cell, all layers and heads."""
        return self.num_layers * self.num_kv_heads * self.head_bytes

    def part_bytes(self, part: int) -> int:
        """Return the bytes of one token's cell that part number `part` has."""
        share = self.parts[part]
        return share.num_layers * share.num_heads * self.head_bytes


class NoKV(_Wire):
    """Why there are no cells to be had: of this server, or of one request."""

    kind: Literal["none"] = "none"
    reason: NoKVReason
    """See docs/wire.md#kv-cache."""
    message: str
    """The same for people."""
