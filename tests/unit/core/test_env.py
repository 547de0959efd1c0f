from pathlib import Path

from pdd_core.env import Env


def test_defaults_need_no_environment(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    env = Env()
    assert env.cache_dir == Path("/home/someone/.cache/pdd-device")
    assert env.allowed_policies() is None


def test_variables_are_read(monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", "/data/models")
    monkeypatch.setenv("PDD_POLICIES", " mine, yours ,")
    monkeypatch.setenv("PDD_CLOUD_API_KEY", "sekret")
    env = Env()
    assert env.cache_dir == Path("/data/models")
    assert env.allowed_policies() == ["mine", "yours"]
    assert "sekret" not in repr(env)


def test_an_empty_list_loads_no_policy(monkeypatch):
    monkeypatch.setenv("PDD_POLICIES", "")
    assert Env().allowed_policies() == []
