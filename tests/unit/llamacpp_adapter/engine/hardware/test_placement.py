"""Where layers go, on machines made up: what fits is taken, and what cannot be had is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError, DeviceEngineFailed
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.hardware.backends import Backends, Gpu
from pdd_llamacpp_adapter.engine.hardware.model_size import ModelSize
from pdd_llamacpp_adapter.engine.hardware.placement import ALL, MARGIN, placed

GB = 10**9
SIZE = ModelSize(
    layers=(GB,) * 10,
    input=GB // 2,
    output=GB,
    key_size=(1024,) * 10,
    value_size=(1024,) * 10,
    num_heads=8,
    embedding=1024,
    feed_forward=4096,
    vocabulary=32000,
)


def gpu(name, free, **fields):
    return Gpu(name, f"a {name}", "CUDA", free, 24 * GB, **fields)


def machine(*gpus, offloads=True, mlock=True, host_free=64 * GB):
    return Backends(offloads, gpus, mlock, host_free)


def place(backends, size=SIZE, **fields):
    return placed(LlamaParams.of(n_ctx=1024, **fields), backends, size, outputs=32)


CPU = machine(offloads=False)
ONE = machine(gpu("CUDA0", 24 * GB))
TWO = machine(gpu("CUDA0", 8 * GB), gpu("CUDA1", 8 * GB))


@pytest.mark.parametrize(
    "fields",
    [
        {"gpu_layers": "all"},
        {"gpu_layers": 1},
        {"device": "CUDA0"},
        {"main_gpu": 1},
        {"split_mode": "row"},
        {"split_mode": "tensor", "flash_attn": "on"},
        {"tensor_split": "1,1"},
    ],
)
@pytest.mark.parametrize(("backends", "says"), [(CPU, "on the CPU alone"), (machine(), "finds no GPU")])
def test_what_no_gpu_can_do_is_refused_by_name(backends, says, fields):
    with pytest.raises(ConfigurationError, match=f"^{next(iter(fields))} is .*{says}"):
        place(backends, **fields)


@pytest.mark.parametrize("fields", [{}, {"gpu_layers": 0}, {"device": "none"}, {"split_mode": "none"}])
@pytest.mark.parametrize("backends", [CPU, machine()])
def test_without_a_gpu_the_cpu_has_all_and_auto_never_refuses(backends, fields):
    found = place(backends, **fields)
    assert (found.gpus, found.gpu_layers, found.layers, found.advice) == ((), 0, 11, "")
    assert "on the CPU" in "\n".join(found.lines())


def test_auto_takes_all_that_fits():
    assert place(ONE).gpu_layers == 11
    found = place(machine(gpu("CUDA0", 6 * GB)))
    assert 0 < found.gpu_layers < 11
    assert found.gpu_need <= 6 * GB - MARGIN
    assert place(machine(gpu("CUDA0", 6 * GB)), gpu_layers=found.gpu_layers).gpu_layers == found.gpu_layers


def test_a_gpu_too_small_for_a_layer_gets_none():
    found = place(machine(gpu("CUDA0", GB)))
    assert (found.gpus, found.gpu_layers) == ((), 0)


@given(free=st.integers(0, 30 * GB), other=st.integers(0, 30 * GB), n_ctx=st.integers(64, 100_000))
def test_what_auto_takes_always_fits(free, other, n_ctx):
    there = machine(gpu("CUDA0", free), gpu("CUDA1", other), host_free=None)
    found = placed(LlamaParams.of(n_ctx=n_ctx), there, SIZE, outputs=32)
    room = max(0, free - MARGIN) + max(0, other - MARGIN)
    assert found.gpu_need <= room
    assert bool(found.gpus) == (found.gpu_layers > 0)
    assert found.advice == ""


@pytest.mark.parametrize("asked", ["all", 9])
def test_a_number_that_does_not_fit_is_refused_with_the_number_that_does(asked):
    there = machine(gpu("CUDA0", 6 * GB))
    fits = place(there).gpu_layers
    with pytest.raises(DeviceEngineFailed, match=f"gpu_layers is {asked}: .* {fits} layers fit"):
        place(there, gpu_layers=asked)


def test_a_number_that_fits_barely_is_taken_with_a_warning():
    found = place(machine(gpu("CUDA0", 11_200_000_000)), gpu_layers="all")
    assert found.gpu_layers == 11
    assert "gpu_layers = auto" in found.advice


def test_more_layers_than_there_are_is_all():
    assert place(ONE, gpu_layers=99).gpu_layers == 11


def test_devices_are_chosen_by_name_and_one_has_all_without_a_split():
    assert [one.name for one in place(TWO, device="CUDA1").gpus] == ["CUDA1"]
    assert [one.name for one in place(TWO, split_mode="none", main_gpu=1).gpus] == ["CUDA1"]
    assert [one.name for one in place(TWO, tensor_split="3,1").gpus] == ["CUDA0", "CUDA1"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"device": "CUDA7"}, "CUDA7 does not exist: llama.cpp has CUDA0, CUDA1"),
        ({"main_gpu": 2}, "main_gpu is 2, but there are 2"),
        ({"tensor_split": "1,1,1"}, "tensor_split has 3 shares for 2"),
        ({"device": "CUDA0", "tensor_split": "1,1"}, "tensor_split has 2 shares for 1"),
    ],
)
def test_devices_that_are_not_there_are_refused_by_name(fields, says):
    with pytest.raises(ConfigurationError, match=says):
        place(TWO, **fields)


def test_an_integrated_gpu_is_used_where_there_is_no_other():
    integrated = gpu("Vulkan1", 24 * GB, integrated=True)
    assert place(machine(integrated)).gpus == (integrated,)
    assert place(machine(gpu("CUDA0", 24 * GB), integrated)).gpus == (gpu("CUDA0", 24 * GB),)
    assert place(machine(gpu("CUDA0", 24 * GB), integrated), device="Vulkan1").gpus == (integrated,)


def test_a_context_beyond_the_memory_is_refused_before_it_is_made():
    with pytest.raises(DeviceEngineFailed, match="n_ctx"):
        place(machine(offloads=False, host_free=10**6))


def test_weights_that_are_mapped_may_exceed_the_memory_and_others_may_not():
    small = machine(offloads=False, host_free=5 * GB)
    assert "smaller quantisation" in place(small).advice
    for fields in ({"mmap": False}, {"mlock": True}):
        with pytest.raises(DeviceEngineFailed, match="need 11"):
            place(small, **fields)


def test_memory_that_cannot_be_locked_is_refused_by_name():
    with pytest.raises(ConfigurationError, match="mlock"):
        place(machine(mlock=False), mlock=True)


def test_a_file_that_does_not_tell_its_size_gets_what_is_asked_for():
    assert place(ONE, size=None).gpu_layers == ALL
    assert place(ONE, size=None, gpu_layers=3).gpu_layers == 3
    assert place(CPU, size=None).gpu_layers == 0


def test_the_lines_name_device_layers_and_memory():
    backend, memory, host = place(ONE).lines()
    assert "CUDA: 11 of 11 layers on CUDA0 (a CUDA0)" in backend
    assert "24.00 GB free" in memory
    assert "64.00 GB free" in host
