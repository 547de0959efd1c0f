from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pdd_cli.convert.gguf_file import model_stem, parts_of, read_gguf
from pdd_core.errors import ModelError


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words.encode())) + words.encode()


SMALL = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 1, 3)
    + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    + text("llama.block_count") + struct.pack("<II", 4, 2)
    + text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("ü")
    + text("output.weight") + struct.pack("<IQQIQ", 2, 3, 5, 1, 64)
)  # fmt: skip


def test_metadata_and_tensors_are_read(tmp_path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(SMALL)
    file = read_gguf([path])
    assert file.metadata == {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "tokenizer.ggml.tokens": ["a", "ü"],
    }
    tensor = file.tensors["output.weight"]
    assert (tensor.shape, tensor.kind) == ((5, 3), 1)
    assert tensor.start == -(-len(SMALL) // 32) * 32 + 64


@pytest.mark.parametrize("length", [0, 3, 20, 60, len(SMALL) - 1])
def test_a_file_that_is_cut_off_is_named(tmp_path, length: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(SMALL[:length])
    with pytest.raises(ModelError, match=r"cut\.gguf is not a whole GGUF file"):
        read_gguf([path])


def test_another_file_is_named(tmp_path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(bytes(100))
    with pytest.raises(ModelError, match=r"other\.gguf is not a whole GGUF file"):
        read_gguf([path])


def test_a_file_that_is_not_split_is_its_only_part() -> None:
    assert parts_of(Path("model-1-of-2.gguf")) == [Path("model-1-of-2.gguf")]
    assert model_stem(Path("model-1-of-2.gguf")) == "model-1-of-2"


def test_a_part_beyond_the_last_is_none(tmp_path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"m-0000{number}-of-00002.gguf").touch()
    with pytest.raises(ModelError, match="one of 2 parts, and no such part"):
        parts_of(tmp_path / "m-00003-of-00002.gguf")
