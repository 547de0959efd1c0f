from __future__ import annotations

import pytest

from pdd_cli import demo_model
from pdd_cli.convert import convert
from pdd_core.errors import ModelError


@pytest.fixture(autouse=True)
def fake_conversion(monkeypatch, tmp_path):
    """Converters that only record their calls."""
    calls: list[str] = []

    def fake(part, source, target) -> None:
        calls.append(part)
        if part == "cloud":
            target.mkdir()
            target = target / "config.json"
        target.write_bytes(source.read_bytes())

    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "convert", fake)
    monkeypatch.setattr(demo_model, "require", lambda *_, **__: None)
    return calls


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "Some-Model.Q4.gguf"
    path.write_bytes(b"GGUF1")
    return path


def test_a_second_call_converts_nothing(gguf, fake_conversion) -> None:
    first = demo_model.prepare(gguf)
    assert demo_model.prepare(gguf) == first
    assert fake_conversion == ["device", "cloud"]
    assert first.name == "some-model.q4"
    assert first.gguf.read_bytes() == (first.vllm_dir / "config.json").read_bytes() == b"GGUF1"


def test_the_device_needs_only_its_own_part(gguf, fake_conversion) -> None:
    assert demo_model.device_gguf(gguf) == demo_model.device_gguf(gguf)
    assert fake_conversion == ["device"]


def test_other_content_under_the_same_name_is_another_model(gguf) -> None:
    before = demo_model.device_gguf(gguf)
    gguf.write_bytes(b"GGUF2")
    assert demo_model.device_gguf(gguf) != before


def test_another_recipe_is_another_model(gguf, monkeypatch) -> None:
    before = demo_model.device_gguf(gguf)
    monkeypatch.setattr(demo_model, "RECIPE", demo_model.RECIPE + 1)
    assert demo_model.device_gguf(gguf) != before


def test_a_failed_conversion_is_tried_again(gguf, monkeypatch, fake_conversion) -> None:
    working = demo_model.convert

    def failing(part, source, target) -> None:
        target.write_bytes(b"half")
        raise ModelError("no")

    monkeypatch.setattr(demo_model, "convert", failing)
    with pytest.raises(ModelError):
        demo_model.device_gguf(gguf)
    monkeypatch.setattr(demo_model, "convert", working)
    assert demo_model.device_gguf(gguf).read_bytes() == b"GGUF1"


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        demo_model.device_gguf(tmp_path / "none.gguf")


def test_copies_land_in_the_folder_asked_for(gguf, tmp_path) -> None:
    copied = demo_model.copy_to(tmp_path / "out", demo_model.prepare(gguf))
    assert copied.gguf.parent == copied.vllm_dir.parent == tmp_path / "out"
    assert (copied.vllm_dir / "config.json").read_bytes() == b"GGUF1"


def test_the_converters_own_reason_reaches_the_user(tmp_path, monkeypatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho noise >&2\necho 'architecture moon is unknown' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(ModelError, match="made into a model for the cloud: architecture moon is unknown"):
        convert("cloud", tmp_path / "a.gguf", tmp_path / "b")
