"""A file that cannot be loaded says why, and one that can be loaded says what is odd about it."""

from __future__ import annotations

import logging

import pytest
from gguf_files import Model, bpe

pytest.importorskip("llama_cpp")

from pdd_cli.doctor.findings import Level
from pdd_cli.doctor.server import server
from pdd_core.errors import ModelError
from pdd_llamacpp_adapter import DeviceEngine

pytestmark = pytest.mark.anyio


@pytest.fixture
def write(tmp_path):
    def make(*, tensors_per_part=0, vocabulary=None, **fields):
        made = Model(vocabulary or bpe(), **fields)
        return made.write(tmp_path / "model.gguf", tensors_per_part=tensors_per_part)

    return make


def reason(path):
    with pytest.raises(ModelError) as caught:
        DeviceEngine.open(path, n_ctx=64)
    message = str(caught.value)
    assert message.startswith(f"llama.cpp cannot load {path}: ")
    assert len(message) < 1000
    return message.removeprefix(f"llama.cpp cannot load {path}: ")


def test_a_truncated_file_is_told_as_such(write):
    [path] = write()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "corrupted or incomplete" in reason(path)


def test_an_unknown_pre_tokenizer_is_named(write):
    [path] = write(vocabulary=bpe(pre="from-the-future"))
    assert "from-the-future" in reason(path)


def test_a_file_that_is_a_later_part_is_told_as_such(write):
    _, second, *_ = write(tensors_per_part=8)
    assert "split" in reason(second)


def test_a_tensor_that_is_missing_is_named(write):
    [path] = write(without=("blk.1.ffn_up.weight",))
    assert "blk.1.ffn_up.weight" in reason(path)


def test_an_error_of_before_is_no_reason(write):
    [broken] = write(vocabulary=bpe(pre="from-the-future"))
    reason(broken)
    _, second, *_ = write(tensors_per_part=8)
    assert "from-the-future" not in reason(second)


@pytest.mark.parametrize(("n_ctx", "warned"), [(512, False), (1024, True)])
def test_a_context_longer_than_the_training_warns_once(write, caplog, n_ctx, warned):
    [path] = write(context=512)
    with caplog.at_level(logging.WARNING), DeviceEngine.open(path, n_ctx=n_ctx) as engine:
        assert engine.n_ctx_train == 512
    assert [record.getMessage() for record in caplog.records if "trained" in record.getMessage()] == (
        ["n_ctx is 1024, but this model was trained on at most 512 tokens: beyond these, answers get worse"]
        * warned
    )


async def findings(path):
    return {finding.check: finding async for finding in server(None, None, str(path))}


async def test_doctor_is_content_with_a_sound_file(write):
    [path] = write(context=4096)
    assert {name: finding.level for name, finding in (await findings(path)).items()} == {
        "device model": Level.OK,
        "chat template": Level.OK,
        "devices": Level.OK,
        "memory": Level.OK,
    }


async def test_doctor_tells_of_a_short_training(write, monkeypatch):
    monkeypatch.setenv("PDD_N_CTX", "2048")
    found = (await findings(write(context=512)[0]))["context length"]
    assert (found.level, found.fix) == (Level.WARN, "export PDD_N_CTX=512")
    monkeypatch.setenv("PDD_N_CTX", "512")
    assert "context length" not in await findings(write(context=512)[0])


@pytest.mark.parametrize(
    ("template", "level", "says"),
    [
        (None, Level.WARN, "no chat template"),
        ("{% for m in messages %}", Level.WARN, "not valid"),
        ("{{ raise_exception('Only tools here') }}", Level.FAIL, "Only tools here"),
        ("{{ messages[0].content.parts[0] }}", Level.FAIL, "refuses"),
        ("{# nothing #}", Level.FAIL, "empty prompt"),
    ],
    ids=["missing", "unparsable", "refuses", "fails", "empty"],
)
async def test_doctor_looks_at_the_chat_template(write, template, level, says):
    found = (await findings(write(chat_template=template, context=4096)[0]))["chat template"]
    assert found.level is level
    assert says in found.detail
    assert "GGUF" in found.fix


async def test_doctor_tells_why_a_file_cannot_be_loaded(write):
    [path] = write(vocabulary=bpe(pre="from-the-future"))
    found = (await findings(path))["device model"]
    assert found.level is Level.FAIL
    assert "from-the-future" in found.detail
