from __future__ import annotations

import pytest

from pdd_cli import demo_model
from pdd_cli.convert import convert_for_cloud
from pdd_cli.convert.agreement import Agreement
from pdd_core.errors import ConfigurationError, ModelError

AGREEMENT = Agreement(prompts=4, same_next=3, mean=0.01, most=0.1)


@pytest.fixture(autouse=True)
def fake_conversion(monkeypatch, tmp_path):
    """Converters that only record their calls."""
    calls: list[str] = []

    def for_device(source, target) -> None:
        calls.append("device")
        target.write_bytes(source.read_bytes())

    def for_cloud(source, target, *, device) -> None:
        calls.append("cloud")
        target.mkdir()
        (target / "config.json").write_bytes(device.read_bytes())
        AGREEMENT.save(target)

    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "convert_for_device", for_device)
    monkeypatch.setattr(demo_model, "convert_for_cloud", for_cloud)
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
    assert first.agreement == AGREEMENT
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
    working = demo_model.convert_for_device

    def failing(source, target) -> None:
        target.write_bytes(b"half")
        raise ModelError("no")

    monkeypatch.setattr(demo_model, "convert_for_device", failing)
    with pytest.raises(ModelError):
        demo_model.device_gguf(gguf)
    monkeypatch.setattr(demo_model, "convert_for_device", working)
    assert demo_model.device_gguf(gguf).read_bytes() == b"GGUF1"


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        demo_model.device_gguf(tmp_path / "none.gguf")


def test_copies_land_in_the_folder_asked_for(gguf, tmp_path) -> None:
    copied = demo_model.copy_to(tmp_path / "out", demo_model.prepare(gguf))
    assert copied.gguf.parent == copied.vllm_dir.parent == tmp_path / "out"
    assert (copied.vllm_dir / "config.json").read_bytes() == b"GGUF1"


def test_a_copy_that_is_there_stays_and_another_model_is_not_taken_for_it(gguf, tmp_path) -> None:
    first = demo_model.prepare(gguf)
    copied = demo_model.copy_to(tmp_path / "out", first)
    assert demo_model.copy_to(tmp_path / "out", first) == copied
    gguf.write_bytes(b"GGUF2")
    with pytest.raises(ConfigurationError, match="remove"):
        demo_model.copy_to(tmp_path / "out", demo_model.prepare(gguf))


@pytest.fixture
def parts(tmp_path):
    paths = [tmp_path / f"Big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_any_part_of_a_split_model_names_it(parts, fake_conversion) -> None:
    made = {demo_model.prepare(part) for part in parts}
    assert fake_conversion == ["device", "cloud"]
    assert [model.name for model in made] == ["big"]
    assert {model.gguf.read_bytes() for model in made} == {parts[0].name.encode()}


def test_every_part_makes_the_model_another_one(parts) -> None:
    before = demo_model.device_gguf(parts[0])
    parts[2].write_bytes(b"another third part")
    assert demo_model.device_gguf(parts[0]) != before


def test_a_missing_part_is_named(parts) -> None:
    parts[1].unlink()
    with pytest.raises(ModelError, match=r"Big-00002-of-00003\.gguf is missing"):
        demo_model.prepare(parts[0])


def test_the_converters_own_reason_reaches_the_user(tmp_path, monkeypatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho noise >&2\necho 'architecture moon is unknown' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    with pytest.raises(ModelError, match="made into a model for the cloud: architecture moon is unknown"):
        convert_for_cloud(tmp_path / "a.gguf", tmp_path / "b", device=tmp_path / "c")
