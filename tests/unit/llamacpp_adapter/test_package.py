from __future__ import annotations

import subprocess
import sys

import pytest

import pdd_llamacpp_adapter


def test_importing_the_package_loads_neither_engine_nor_numpy():
    check = (
        "import sys, pdd_llamacpp_adapter as p; "
        "p.AnswerSession, p.CloudClient, p.AnswerRequest, p.PROFILES, p.Outcome, p.generate; "
        "print([m for m in ('llama_cpp', 'numpy', 'jinja2') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_exported_name_exists():
    assert all(getattr(pdd_llamacpp_adapter, name) is not None for name in pdd_llamacpp_adapter.__all__)
    assert set(pdd_llamacpp_adapter.__all__) <= set(dir(pdd_llamacpp_adapter))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pdd_llamacpp_adapter.nothing
