"""What `pdd-device cloud --model` serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdd_cli import cloud, cloud_command
from pdd_cli.convert.agreement import Agreement
from pdd_cli.demo_model import DEMO_NAME, PreparedModel, model_name
from pdd_cli.progress import silent


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    """The files that were asked to be prepared."""
    asked: list[Path | None] = []

    def prepare(gguf=None, *, progress):
        asked.append(gguf)
        return PreparedModel(Path("d.gguf"), Path("made"), model_name(gguf), Agreement(4, 4, 0.0, 0.0))

    monkeypatch.setattr(cloud, "prepare", prepare)
    monkeypatch.setattr(cloud_command, "require", lambda *_, **__: None)
    return asked


def words(model: str, *flags: str) -> str:
    server = cloud.server_of(model, host="127.0.0.1", port=1, api_key=None, flags=flags, progress=silent)
    return server.command.shell_line()


@pytest.mark.parametrize("name", ["Big.Q4_K.gguf", "Big.Q4_K-00002-of-00003.gguf"])
def test_a_gguf_is_prepared_and_served_by_its_name(prepared, name: str) -> None:
    line = words(name)
    assert prepared == [Path(name)]
    assert " serve made " in line
    assert "--served-model-name big.q4_k " in line
    assert line.endswith("--max-model-len auto")


def test_a_context_that_is_asked_for_is_the_context(prepared) -> None:
    assert words("a.gguf", "--max-model-len=512").count("--max-model-len") == 1


def test_the_demo_keeps_its_name(prepared) -> None:
    assert f"--served-model-name {DEMO_NAME} --max-model-len 8192" in words("demo")
    assert prepared == [None]


def test_anything_else_is_vllms_own_matter(prepared, tmp_path) -> None:
    assert " serve org/model " in words("org/model")
    assert f" serve {tmp_path} " in words(str(tmp_path))
    assert prepared == []
