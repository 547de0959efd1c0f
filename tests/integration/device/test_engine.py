from __future__ import annotations

import threading

import anyio
import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np
import pytest

from pdd_core.errors import ContextOverflow, DeviceEngineFailed, DeviceError, ModelError
from pdd_llamacpp_adapter import DeviceEngine

pytestmark = pytest.mark.anyio


async def process(engine, ids, chunk):
    logits = None
    for start in range(0, len(ids), chunk):
        logits = await engine.slots[0].extend(ids[start : start + chunk], want_logits=start + chunk >= len(ids))
    return logits


async def test_prefill_in_chunks_equals_prefill_at_once(engine, long_prompt):
    whole = await process(engine, long_prompt[:256], 256)
    engine.reset()
    chunked = await process(engine, long_prompt[:256], 64)
    assert np.array_equal(whole, chunked)
    assert engine.slots[0].memory.n_past == 256


async def test_a_batch_above_llamas_limit_is_cut(gguf, long_prompt):
    with DeviceEngine.open(gguf, n_ctx=256, threads=1, batch_size=48) as engine:
        logits = await engine.slots[0].extend(long_prompt[:200], want_logits=True)
        assert engine.slots[0].memory.n_past == 200
        assert logits.shape == (engine.vocab.size,)


async def test_logits_are_a_copy(engine, long_prompt):
    first = await engine.slots[0].extend(long_prompt[:8], want_logits=True)
    kept = first.copy()
    await engine.slots[0].extend(long_prompt[8:16], want_logits=True)
    assert np.array_equal(first, kept)


async def test_cancelling_stops_llama_at_once_and_leaves_the_context_usable(engine, long_prompt):
    fresh = await process(engine, long_prompt[:300], 100)
    engine.reset()
    await engine.slots[0].extend(long_prompt[:100])
    with anyio.move_on_after(0.15) as scope:
        await engine.slots[0].extend(long_prompt[100:600])  # one batch, seconds of work
    assert scope.cancelled_caught
    assert engine.slots[0].memory.n_past == 100, "llama.cpp did not finish the batch"
    assert np.array_equal(await process(engine, long_prompt[100:300], 100), fresh)


async def test_an_abort_prints_nothing(engine, long_prompt, capfd, caplog):
    with anyio.move_on_after(0.1):
        await engine.slots[0].extend(long_prompt[:512])
    assert engine.slots[0].memory.n_past == 0
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


async def test_a_job_that_was_cancelled_in_the_queue_does_nothing(engine, long_prompt):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.slots[0].extend, long_prompt[:200])
        await anyio.sleep(0.05)
        with anyio.move_on_after(0.01) as scope:
            await engine.slots[0].extend(long_prompt[200:400])
    assert scope.cancelled_caught
    assert engine.slots[0].memory.n_past == 200


async def test_rewinding_and_going_on_elsewhere_is_exact(engine, long_prompt):
    expected = await process(engine, [*long_prompt[:128], *long_prompt[300:364]], 64)
    engine.reset()
    await process(engine, long_prompt[:256], 64)
    assert await engine.slots[0].memory.rewind(128) == 128
    assert np.array_equal(await process(engine, long_prompt[300:364], 64), expected)


async def test_the_common_prefix_of_two_answers_is_kept(engine, long_prompt):
    await process(engine, long_prompt[:256], 64)
    assert await engine.slots[0].memory.start(long_prompt[:128] + long_prompt[300:400]) == 128
    assert engine.slots[0].memory.n_past == 128


async def test_a_repeated_prompt_is_kept_but_for_its_last_token(engine, long_prompt):
    fresh = await process(engine, long_prompt[:65], 65)
    assert await engine.slots[0].memory.start(long_prompt[:65]) == 64
    again = await engine.slots[0].extend(long_prompt[64:65], want_logits=True)
    assert again.argmax() == fresh.argmax()
    np.testing.assert_allclose(again, fresh, atol=0.1)


async def test_what_does_not_fit_is_refused_before_any_work(gguf, long_prompt):
    small = DeviceEngine.open(gguf, n_ctx=256)
    with small:
        await small.slots[0].extend(long_prompt[:200])
        with pytest.raises(ContextOverflow, match="256"):
            await small.slots[0].extend(long_prompt[200:300])
        assert small.slots[0].memory.n_past == 200


@pytest.mark.parametrize("ids", [[], [-1], [10**6]])
async def test_ids_that_would_crash_llama_are_errors(engine, ids):
    with pytest.raises(DeviceEngineFailed):
        await engine.slots[0].extend(ids)
    assert engine.slots[0].memory.n_past == 0


async def test_one_answer_at_a_time(engine):
    order = []

    async def answer(name):
        async with engine.exclusive():
            order.append(name)
            await anyio.sleep(0.02)
            order.append(name)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(answer, 1)
        tasks.start_soon(answer, 2)
    assert order == [1, 1, 2, 2]


async def test_a_closed_engine_says_so(gguf, long_prompt):
    engine = DeviceEngine.open(gguf, n_ctx=256)
    vocab = engine.vocab
    engine.close()
    engine.close()
    with pytest.raises(DeviceEngineFailed, match="closed"):
        await engine.slots[0].extend(long_prompt[:4])
    with pytest.raises(DeviceError, match="closed"):
        vocab.tokenize("text")


async def test_closing_frees_the_model_behind_the_last_call_that_reads_text(gguf, monkeypatch):
    tokenize, free = L.llama_tokenize, L.llama_model_free
    begun, go_on, order = threading.Event(), threading.Event(), []

    def slow(*args):
        begun.set()
        assert go_on.wait(30)
        order.append("read")
        return tokenize(*args)

    monkeypatch.setattr(L, "llama_tokenize", slow)
    monkeypatch.setattr(L, "llama_model_free", lambda model: (order.append("freed"), free(model)))
    engine = DeviceEngine.open(gguf, n_ctx=256)
    vocab = engine.vocab
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, vocab.tokenize, "text")
        await anyio.to_thread.run_sync(begun.wait)
        engine.close()  # does not wait: nothing can stop the call
        with pytest.raises(DeviceError, match="closed"):
            vocab.tokenize("other text")
        go_on.set()
    assert order == ["read", "freed"]


async def test_closing_while_it_works_stops_it(gguf, long_prompt):
    engine = DeviceEngine.open(gguf, n_ctx=1024)

    async def close():
        await anyio.sleep(0.1)
        await anyio.to_thread.run_sync(engine.close)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        with pytest.raises(DeviceEngineFailed, match="closed"):
            await engine.slots[0].extend(long_prompt[:512])


async def test_a_missing_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="No such file"):
        DeviceEngine.open(tmp_path / "none.gguf")


async def test_a_directory_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="directory"):
        DeviceEngine.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"GGUF", b"GGUF" + bytes(64)])
async def test_a_file_that_is_no_model_is_a_model_error(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        DeviceEngine.open(path)
