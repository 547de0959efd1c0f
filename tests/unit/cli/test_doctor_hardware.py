"""What doctor says of the hardware, on machines made up."""

from pdd_cli.doctor.findings import Level
from pdd_cli.doctor.hardware import placement
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.hardware.backends import Backends, Gpu
from pdd_llamacpp_adapter.engine.hardware.model_size import ModelSize

GB = 10**9
SIZE = ModelSize((GB,) * 4, GB // 2, GB, (64,) * 4, (64,) * 4, 4, 256, 1024, 1000)
CUDA = Gpu("CUDA0", "a card", "CUDA", 20 * GB, 24 * GB)


def found(backends, size=SIZE, **fields):
    params = LlamaParams.of(**fields)
    return {one.check: one for one in placement(params, backends, size, outputs=32)}


def test_a_gpu_is_named_with_its_memory_and_the_layers_that_it_gets():
    said = found(Backends(True, (CUDA,), True, 64 * GB))
    assert (said["devices"].level, said["memory"].level) == (Level.OK, Level.OK)
    assert "CUDA0 (a card, 20.00 GB of 24.00 GB free)" in said["devices"].detail
    assert "5 of 5 layers on CUDA0" in said["memory"].detail


def test_a_build_for_the_cpu_says_how_to_get_another():
    said = found(Backends(False, (), True, 64 * GB))["devices"]
    assert said.level is Level.OK
    assert "docs/hardware.md" in said.detail


def test_a_gpu_that_is_not_found_is_a_warning():
    assert found(Backends(True, (), True, 64 * GB))["devices"].level is Level.WARN


def test_what_cannot_be_obeyed_or_does_not_fit_fails_by_name():
    refused = found(Backends(False, (), True, 64 * GB), gpu_layers="all")["memory"]
    assert (refused.level, refused.detail.split()[0]) == (Level.FAIL, "gpu_layers")
    assert found(Backends(False, (), True, 1000))["memory"].level is Level.FAIL


def test_short_memory_is_a_warning_with_what_to_do():
    said = found(Backends(False, (), True, 2 * GB))["memory"]
    assert said.level is Level.WARN
    assert "n_ctx" in said.fix


def test_a_file_that_does_not_tell_its_size_is_a_warning():
    assert found(Backends(False, (), True, GB), size=None)["memory"].level is Level.WARN
