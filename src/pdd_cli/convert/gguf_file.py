"""A GGUF file as it is stored, with all its parts: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

The reader of the package `gguf` takes a minute for a vocabulary of 262,144 tokens; this one takes a second.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PART = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a metadata value -> its format in `struct`; 8 is text, 9 an array."""
_TEXT, _ARRAY = 8, 9
_FLOATS = {0: np.float32, 1: np.float16}
"""Types of tensors that are stored as plain numbers."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, in the file."""

    data: mmap.mmap
    start: int
    kind: int
    """``ggml_type``."""
    shape: tuple[int, ...]
    """Slowest dimension first."""

    def values(self) -> np.ndarray:
        """Return its values, float32.

        Raises:
            NotImplementedError: nobody knows how to dequantise its kind.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.kind)
        block, size = GGML_QUANT_SIZES[kind]
        *rows, columns = self.shape
        stored = np.frombuffer(self.data, np.uint8, int(np.prod(self.shape)) // block * size, self.start)
        if self.kind in _FLOATS:
            return stored.view(_FLOATS[self.kind]).reshape(self.shape).astype(np.float32)
        values: np.ndarray = dequantize(stored.reshape(*rows, columns // block * size), kind)
        return values.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The metadata of the first part, and the tensors of all."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def model_stem(path: Path) -> str:
    """Return the file's name without its ending, and without the number of a part."""
    found = _PART.fullmatch(path.stem)
    return found["name"] if found else path.stem


def parts_of(path: Path) -> list[Path]:
    """Return all parts of the model that `path` belongs to, in order; a file that is not split is its only part.

    Raises:
        ModelError: a part is missing; names it.
    """
    found = _PART.fullmatch(path.stem)
    if not found or path.suffix != ".gguf":
        return [path]
    count = int(found["count"])
    parts = [path.with_name(f"{found['name']}-{part:05d}-of-{count:05d}.gguf") for part in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if path not in parts or missing:
        raise ModelError(f"{path} is one of {count} parts, and {', '.join(missing) or 'no such part'} is missing")
    return parts


def read_gguf(parts: Sequence[Path]) -> GgufFile:
    """Read the metadata, and where each tensor lies.

    Raises:
        ModelError: a part is not GGUF, or is cut off.
    """
    files = [_read(part) for part in parts]
    return GgufFile(files[0].metadata, {name: tensor for file in files for name, tensor in file.tensors.items()})


def _read(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _Reader(data).file()
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise ModelError(f"{path} is not a whole GGUF file: {error}") from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def file(self) -> GgufFile:
        magic, _version, tensors, keys = self._take("4sIQQ")
        if magic != b"GGUF":
            raise ValueError("it begins otherwise")
        metadata = {self._text(): self._value(self._number("I")) for _ in range(keys)}
        table = [(self._text(), self._take(f"{self._number('I')}Q"), *self._take("IQ")) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-self._at // alignment) * alignment
        return GgufFile(
            metadata,
            {
                name: Tensor(self._data, start + offset, kind, tuple(reversed(shape)))
                for name, shape, kind, offset in table
            },
        )

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind != _ARRAY:
            return self._number(_NUMBERS[kind])
        kind, count = self._take("IQ")
        if kind in _NUMBERS:
            return list(self._take(f"{count}{_NUMBERS[kind]}"))
        return [self._value(kind) for _ in range(count)]

    def _text(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _number(self, form: str) -> Any:
        return self._take(form)[0]

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{form}", self._data, self._at)
        self._at += struct.calcsize(f"<{form}")
        return values
