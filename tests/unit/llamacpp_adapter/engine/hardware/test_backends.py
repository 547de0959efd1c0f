"""What ggml's registry says becomes devices, with a registry made up; and the host's free memory from files."""

import ctypes
from types import SimpleNamespace

import pytest

from pdd_llamacpp_adapter.engine.hardware.backends import Gpu, found_backends, host_free

CPU, GPU, INTEGRATED, ACCELERATOR = range(4)


class Function:
    """Takes `argtypes` and `restype`, as a function of a library does."""

    def __init__(self, call):
        self.call = call

    def __call__(self, *arguments):
        return self.call(*arguments)


def registry(*devices):
    def memory(handle, free, total):
        free._obj.value, total._obj.value = devices[handle - 1][3:]

    def one(field):
        return Function(lambda handle: devices[handle - 1][field])

    return SimpleNamespace(
        ggml_backend_dev_count=Function(lambda: len(devices)),
        ggml_backend_dev_get=Function(lambda index: index + 1),
        ggml_backend_dev_type=one(0),
        ggml_backend_dev_name=one(1),
        ggml_backend_dev_description=Function(lambda _: "Größe".encode()),
        ggml_backend_dev_memory=Function(memory),
        ggml_backend_dev_backend_reg=Function(lambda handle: handle),
        ggml_backend_reg_name=one(2),
    )


def llama(*, offloads):
    return SimpleNamespace(llama_supports_gpu_offload=lambda: offloads, llama_supports_mlock=lambda: True)


def test_gpus_are_told_from_the_cpu_and_its_helpers():
    found = found_backends(
        llama(offloads=True),
        registry(
            (ACCELERATOR, b"BLAS", b"BLAS", 0, 0),
            (GPU, b"CUDA0", b"CUDA", 20, 24),
            (INTEGRATED, b"Vulkan0", b"Vulkan", 5, 8),
            (CPU, b"CPU", b"CPU", 1, 2),
        ),
    )
    assert found.offloads
    assert found.gpus == (
        Gpu("CUDA0", "Größe", "CUDA", 20, 24, 2),
        Gpu("Vulkan0", "Größe", "Vulkan", 5, 8, 3, integrated=True),
    )
    assert found.name == "CUDA, Vulkan"


def test_a_build_without_gpus_is_the_cpu():
    found = found_backends(llama(offloads=False), registry((CPU, b"CPU", b"CPU", 1, 2)))
    assert (found.offloads, found.gpus, found.name) == (False, (), "CPU")


def test_pointers_are_declared_so_that_none_is_cut_to_an_int():
    ggml = registry()
    found_backends(llama(offloads=False), ggml)
    assert ggml.ggml_backend_dev_get.restype is ctypes.c_void_p
    assert ggml.ggml_backend_dev_name.argtypes == [ctypes.c_void_p]


@pytest.fixture
def meminfo(tmp_path):
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\nSwapFree: 1000 kB\n")
    return file


def test_memory_and_swap_are_free_together(meminfo, tmp_path):
    assert host_free(meminfo, tmp_path / "none") == 5000 * 1024


def test_a_container_has_what_is_left_of_its_limit(meminfo, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 100000\nactive_file 50000\n")
    assert host_free(meminfo, tmp_path) == 450_000
    (tmp_path / "memory.max").write_text("max\n")
    assert host_free(meminfo, tmp_path) == 5000 * 1024
