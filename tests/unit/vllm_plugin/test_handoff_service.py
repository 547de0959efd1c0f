"""What the plugin tells about a server, from vLLM's own configuration."""

from types import SimpleNamespace

import pytest
from kv_cells import geometry
from vllm_fakes import FakeEngine, parallel

from pdd_core.handoff import CloudInfo, StructuredOutputs
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.kv.handshake import NOT_ENABLED
from pdd_vllm_plugin.kv.shelves import Shelves
from pdd_vllm_plugin.processes.other_processes import OtherProcesses


class Tokenizer:
    all_special_ids = (1,)
    eos_token_id = 1

    def get_vocab(self):
        return {"▁a": 0, "<end>": 1, "<0x0A>": 3}

    def get_added_vocab(self):
        return {"<end>": 1}


@pytest.fixture
def start(monkeypatch):
    monkeypatch.setattr("pdd_vllm_plugin.handoff_service.version", lambda _: "0.1.0")

    def begin(
        *,
        sampling=None,
        generation_config=None,
        processes=None,
        shelves=NOT_ENABLED,
        parallel_config=None,
        **config,
    ):
        engine = FakeEngine()
        model = SimpleNamespace(
            max_model_len=64,
            try_get_generation_config=lambda: generation_config,
            get_diff_sampling_param=lambda: sampling or {},
        )
        engine.vllm_config = SimpleNamespace(
            model_config=model,
            parallel_config=parallel_config or parallel(),
            structured_outputs_config=SimpleNamespace(
                backend="guidance", disable_any_whitespace=True, disable_additional_properties=False
            ),
        )
        engine.get_tokenizer = Tokenizer
        service = HandoffService()
        info = service.start(engine, PDDConfig(**config), "m", processes, shelves)
        assert CloudInfo.model_validate_json(service.info_json) == info
        return service, info

    return begin


def test_tokens_are_told_by_what_they_mean(start):
    service, info = start(generation_config={"eos_token_id": [1, 3]})
    assert service.vocabulary == [b" a", b"<end>", None, b"\n"]
    assert (info.tokenizer.size, info.tokenizer.holes, info.tokenizer.eos_ids) == (4, (2,), (1, 3))


def test_the_models_way_of_sampling_is_told(start):
    _, info = start(sampling={"temperature": 0.6, "top_k": 20, "max_tokens": 32})
    assert info.default_sampling_params.model_dump(exclude_none=True) == {
        "temperature": 0.6,
        "top_k": 20,
        "max_tokens": 32,
    }


def test_that_it_has_none_is_told_too(start):
    assert start()[1].default_sampling_params.given() == {}


def test_a_wrong_value_in_a_models_files_does_not_keep_the_server_from_starting(start, caplog):
    _, info = start(sampling={"temperature": -0.5, "top_p": 0.9})
    assert info.default_sampling_params.given() == {"top_p": 0.9}
    assert "temperature" in caplog.text


def test_how_formats_are_obeyed_is_told(start):
    _, info = start()
    told = StructuredOutputs(backend="guidance", disable_any_whitespace=True)
    assert info.structured_outputs == told


@pytest.mark.parametrize(("config", "told"), [({}, False), ({"store": "redis://127.0.0.1"}, True)])
def test_a_shared_store_is_told(start, config, told):
    assert ("shared_store" in start(**config)[1].features) is told


def test_the_names_of_several_processes_are_shared(start, base):
    processes = OtherProcesses.join(base, "server", 0, 2)
    service, _ = start(processes=processes)
    assert service.processes is processes
    service.store.refuse("a" * 32)
    assert OtherProcesses.join(base, "server", 1, 2).names.is_taken("a" * 32)
    assert start()[0].processes is None


def test_what_cells_look_like_is_told(start, tmp_path):
    shelves = Shelves(geometry(), {0: [tmp_path]})
    service, info = start(shelves=shelves)
    assert info.kv == geometry()
    assert service.cells.shelves is shelves
    assert service.store.drop_cells == service.cells.drop


def test_why_there_are_no_cells_is_told_and_that_the_field_is_known(start):
    _, info = start()
    assert info.kv.reason == "not_enabled"
    assert "kv" in info.features


def test_the_processes_share_the_bound_on_what_is_sent(start):
    service, _ = start(parallel_config=parallel(_api_process_count=4), kv_mbit_s=8.0)
    assert service.cells._bucket._rate == 250_000


def test_that_a_tokenizers_digest_is_compared_is_told(start):
    service, info = start()
    assert "tokenizer_digest" in info.features
    assert service.tokenizer == info.tokenizer.digest
