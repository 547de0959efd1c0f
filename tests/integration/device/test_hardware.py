"""Each of llama.cpp's settings reaches it, on the real CPU build: read back, or seen in its log or answers."""

from __future__ import annotations

import logging

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np
import pytest
from near_ties import NEAR_TIE

from pdd_cli.doctor.findings import Level
from pdd_cli.doctor.hardware import hardware
from pdd_core.errors import ConfigurationError, DeviceEngineFailed, ModelError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter import DeviceEngine
from pdd_llamacpp_adapter.engine import llama_log
from pdd_llamacpp_adapter.engine.context import OUTPUTS, LlamaContext
from pdd_llamacpp_adapter.engine.hardware.model_size import model_size
from pdd_llamacpp_adapter.engine.logprobs import NextToken

TOKENS = 12


@pytest.fixture
def context(gguf):
    opened = []

    def make(*, kv=False, **fields):
        opened.append(LlamaContext(gguf, LlamaParams.of(**{"n_ctx": 256, "threads": 1, **fields}), kv=kv))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.DEBUG, llama_log.logger.name)
    return lambda: caplog.text


def greedy(context, prompt):
    sequence = context.sequences[0]
    logits = sequence.decode(prompt, want_logits=True)
    steps = []
    for _ in range(TOKENS):
        steps.append((int(logits.argmax()), logits))
        logits = sequence.decode([steps[-1][0]], want_logits=True)
    return steps


def assert_alike(ours, theirs):
    """The same greedy ids, up to where the model itself hardly prefers one."""
    for (ours_id, ours_logits), (theirs_id, _) in zip(ours, theirs, strict=True):
        if ours_id != theirs_id:
            assert ours_logits[ours_id] - ours_logits[theirs_id] < NEAR_TIE
            return


@pytest.fixture(scope="session")
def plain(gguf, prompt):
    one = LlamaContext(gguf, LlamaParams.of(n_ctx=256, threads=1))
    try:
        return greedy(one, prompt)
    finally:
        one.close()


def test_sizes_and_threads_can_be_read_back(context):
    made = context(n_ctx=256, batch_size=64, ubatch_size=32, threads=2)
    assert (L.llama_n_ctx(made.handle), L.llama_n_batch(made.handle), L.llama_n_ubatch(made.handle)) == (
        256,
        64,
        32,
    )
    assert made.threads == (L.llama_n_threads(made.handle), L.llama_n_threads_batch(made.handle))
    assert made.threads[0] in (1, 2)


def test_the_answer_is_the_same_with_two_threads(context, prompt, plain):
    two = context()
    two.use_threads(2)
    for (ours, logits), (theirs, others) in zip(greedy(two, prompt), plain, strict=True):
        assert ours == theirs
        assert np.array_equal(logits, others)


@pytest.mark.parametrize(
    "fields",
    [
        {"flash_attn": "on"},
        {"flash_attn": "auto"},
        {"cache_type_k": "f32", "cache_type_v": "f32"},
        {"cache_type_k": "bf16", "cache_type_v": "bf16"},
        {"cache_type_k": "q8_0", "cache_type_v": "q8_0", "flash_attn": "on"},
        {"batch_size": 16},
        {"ubatch_size": 16},
        {"mmap": False},
        {"swa_full": False},
    ],
    ids=str,
)
def test_the_answer_is_the_same_with(context, prompt, plain, fields):
    assert_alike(plain, greedy_in_batches(context(**fields), prompt))


def greedy_in_batches(context, prompt):
    head = prompt[:-1]
    for begin in range(0, len(head), context.n_batch):
        context.sequences[0].decode(head[begin : begin + context.n_batch], want_logits=False)
    return greedy(context, prompt[-1:])


def test_batches_of_one_token_do_not_end_the_process(context, prompt, plain):
    made = context(batch_size=1, kv=True)
    assert made.sequences[0].cells is not None
    assert_alike(plain, greedy_in_batches(made, prompt))


def test_cache_types_reach_llama(context, logged):
    context(cache_type_k="q8_0", cache_type_v="q4_0", flash_attn="on")
    assert "K (q8_0)" in logged()
    assert "V (q4_0)" in logged()


def test_rows_of_logits_are_reserved_for_those_that_are_used(context, logged):
    made = context(n_ctx=512)
    assert f"n_outputs_max         = {OUTPUTS}" in logged()
    with pytest.raises(DeviceEngineFailed, match=f"logits of {OUTPUTS} tokens"):
        made.sequences[0].decode([1] * (OUTPUTS + 1), want_logits=False, outputs=range(OUTPUTS + 1))
    made.sequences[0].decode([1] * (OUTPUTS + 1), want_logits=True, outputs=range(OUTPUTS - 1))
    assert made.logits_at(OUTPUTS).shape == made.logits_at(0).shape


@pytest.mark.anyio
async def test_more_judged_tokens_than_rows_are_judged_in_parts(engine, long_prompt):
    count = 2 * OUTPUTS + 5
    seen = {index: NextToken(long_prompt[index + 1]) for index in range(count)}
    found, logits = await engine.slots[0].judge(long_prompt[:count], seen, want_logits=True)
    assert len(found) == count
    assert logits is not None
    assert engine.slots[0].memory.n_past == count


def test_rope_and_yarn_reach_llama(context, prompt, plain):
    scaled = context(rope_scaling="yarn", rope_scale=2, yarn_orig_ctx=2048)
    assert scaled.n_ctx_train == 4096
    assert not np.array_equal(greedy(scaled, prompt)[0][1], plain[0][1])
    assert not np.array_equal(greedy(context(rope_freq_base=1000), prompt)[0][1], plain[0][1])


def test_fields_of_the_file_can_be_replaced(context, caplog):
    made = context(override_kv="llama.context_length=int:77,general.name=str:other")
    assert made.n_ctx_train == 77
    assert "trained on at most 77" in caplog.text


def test_the_model_may_be_locked(context, prompt, plain):
    assert_alike(plain, greedy(context(mlock=True), prompt))


@pytest.fixture
def adapter(tmp_path, gguf):
    gguf_package = pytest.importorskip("gguf")
    path = tmp_path / "adapter.gguf"
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    random = np.random.default_rng(0)
    for layer in range(4):
        name = f"blk.{layer}.attn_output.weight"
        writer.add_tensor(f"{name}.lora_a", random.standard_normal((4, 576), dtype=np.float32))
        writer.add_tensor(f"{name}.lora_b", random.standard_normal((576, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_changes_the_answer_by_its_scale(context, prompt, plain, adapter):
    changed = greedy(context(lora=str(adapter)), prompt)
    assert [token for token, _ in changed] != [token for token, _ in plain]
    nothing = greedy(context(lora=f"{adapter}:0.0"), prompt)
    assert [token for token, _ in nothing] == [token for token, _ in plain]


def test_a_file_that_is_no_adapter_is_told_by_name(gguf, tmp_path):
    for path in (tmp_path / "none.gguf", gguf):
        with pytest.raises(ModelError, match=f"LoRA adapter {path}"):
            DeviceEngine.open(gguf, n_ctx=64, lora=str(path))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"cache_type_k": "q8_0"}, "cache_type_k is q8_0"),
        ({"cache_type_k": "f32", "cache_type_v": "f32"}, "type f32"),
        ({"rope_freq_base": 5000.0}, "rope_freq_base"),
        ({"override_kv": "llama.context_length=int:77"}, "override_kv"),
    ],
)
def test_settings_that_do_not_suit_the_clouds_cells_switch_them_off_with_the_reason(context, fields, why):
    made = context(kv=True, **fields)
    assert made.sequences[0].cells is None
    assert why in made.kv.reason


@pytest.mark.parametrize("flash_attn", ["on", "off", "auto"])
def test_the_clouds_cells_are_taken_however_llama_decides_on_flash_attention(context, flash_attn):
    assert context(kv=True, flash_attn=flash_attn).sequences[0].cells is not None


@pytest.mark.parametrize("fields", [{"gpu_layers": "all"}, {"tensor_split": "1"}, {"split_mode": "row"}])
def test_what_this_build_cannot_obey_is_refused_before_weights_are_read(gguf, tmp_path, fields):
    if L.llama_supports_gpu_offload():
        pytest.skip("this build has a GPU")
    head = tmp_path / "head.gguf"  # its tables alone: llama.cpp would refuse it
    head.write_bytes(gguf.read_bytes()[: 8 * 2**20])
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        DeviceEngine.open(head, **fields)


def test_a_context_beyond_the_memory_is_refused_before_it_is_made(gguf):
    with pytest.raises(DeviceEngineFailed, match="n_ctx"):
        DeviceEngine.open(gguf, n_ctx=10**9)


def test_the_sizes_are_those_of_the_file(gguf):
    size = model_size(gguf)
    assert len(size.layers) == 30
    assert size.weights - size.input == pytest.approx(gguf.stat().st_size, rel=0.02)  # tied: told twice
    assert (size.key_size[0], size.num_heads, size.vocabulary) == (192, 9, 49152)
    assert size.cells(0, LlamaParams.of(n_ctx=1024)) == 1024 * (192 + 192) * 2


def test_a_file_that_is_none_has_no_size(tmp_path):
    file = tmp_path / "none.gguf"
    file.write_bytes(b"GGUF")
    assert model_size(file) is None


def test_a_template_of_ones_own_renders_the_chats(gguf):
    with DeviceEngine.open(gguf, n_ctx=64, threads=1, chat_template="Q: {{ messages[0].content }}") as engine:
        assert engine.vocab.render_chat([{"role": "user", "content": "Hi"}]) == engine.vocab.tokenize("Q: Hi")


def test_doctor_names_what_the_build_computes_on(gguf):
    found = {one.check: one for one in hardware(gguf, LlamaParams())}
    assert found["devices"].level is Level.OK
    assert "GB needed" in found["memory"].detail
