"""What the benchmark of parallel deployments starts and counts."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import parallel
    import parallel_checks

    yield SimpleNamespace(parallel=parallel, checks=parallel_checks)
    for name in ("parallel", "parallel_checks"):
        del sys.modules[name]


def test_a_machine_gets_the_deployments_that_fit(bench):
    def chosen(**options):
        return bench.parallel.chosen(**{"gpus": 1, "on_cpu": False, "only": None, **options})

    assert chosen() == ["one", "shared", "shared-api2", "shared-api4"]
    assert {"tp2", "pp2", "dp2", "dp2-api2", "dp2-api4", "external"} < set(chosen(gpus=2))
    assert set(chosen(gpus=4)) == set(bench.parallel.DEPLOYMENTS)
    assert chosen(on_cpu=True) == ["one", "dp2", "dp2-api2", "dp2-api4"]
    assert chosen(gpus=2, only=["dp2", "tp2-dp2"]) == ["dp2"]


def test_tokens_are_counted_over_all_engines(bench):
    text = """# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 12.0
vllm:generation_tokens_total{engine="1",model_name="m"} 30.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 99.0
"""
    assert bench.checks.generated(text) == 42


def test_the_model_with_experts_has_the_vocabulary_of_the_other(bench, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 7, "bos_token_id": 1, "eos_token_id": 2}))
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (model / name).write_text(name)
    made = bench.parallel.model_with_experts(tmp_path / "made", model)
    assert {file.name for file in made.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    config = json.loads((made / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (7, 2)
    assert config["num_local_experts"] > 1
