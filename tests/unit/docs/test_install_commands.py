"""What we say installs us does: nothing of ours is on a package index, so every command installs from a clone."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LABORATORY = tomllib.loads((ROOT / "src/pdd_lab/pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = re.compile(r"pdd[-_](device|lab)\b|\.(\[|$)|\.?/?src/")
END = re.compile(r"[`\n#;()]|' | or $")


def places():
    trees = [path for folder in ("docs", "examples", "src") for path in (ROOT / folder).rglob("*")]
    for path in sorted([*ROOT.glob("*.md"), *trees]):
        if path.suffix in {".md", ".py", ".toml"}:
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def commands():
    for name, text in places():
        for rest in text.replace("\\\n", " ").split("pip install ")[1:]:
            words = END.split(rest)[0].rstrip(",'")
            if words.count('"') % 2:  # the end of the string that the command stands in
                words = words[: words.rindex('"')]
            yield name, shlex.split(words)


def wrong(words):
    """The words that install something of ours otherwise than as ``.``, ``.[extras]`` or a project's folder."""
    for word in words:
        if not OURS.match(word) or (word.startswith("./") and (ROOT / word / "pyproject.toml").is_file()):
            continue
        clone = re.fullmatch(r"\.(\[(?P<extras>[\w,-]+)\])?", word)
        if clone is None or not set((clone["extras"] or "plots").split(",")) <= set(EXTRAS):
            yield word


@pytest.mark.parametrize(
    "word",
    [
        "pdd-device",
        "pdd-device[device]",
        "pdd-lab",
        ".[bench]",
        ".[device,bench]",
        "./src/pdd_core",
        "src/pdd_lab",
    ],
)
def test_a_wrong_command_is_noticed(word):
    assert list(wrong(["--upgrade", word])) == [word]


def test_every_install_command_installs_from_a_clone_what_there_is():
    found = list(commands())
    assert ("README.md", ["."]) in found
    said = {word for _, words in found for word in words}
    assert said >= {".", ".[device]", ".[cloud-cpu]", ".[plots]", "./src/pdd_lab"}
    assert [(name, word) for name, words in found for word in wrong(words)] == []


def test_an_extra_is_never_named_as_if_an_index_had_us():
    lines = [(name, line) for name, text in places() for line in text.splitlines() if "pdd-device[" in line]
    assert {name for name, _ in lines} <= {"src/pdd_lab/pyproject.toml"}


def test_our_own_requirements_name_extras_that_there_are():
    ours = [line for line in LABORATORY["dependencies"] if line.startswith(PROJECT["name"])]
    assert ours == [f"pdd-device[plots]=={PROJECT['version']}"]
    assert "plots" in EXTRAS


def test_every_extra_that_the_tools_install_is_there():
    tox = (ROOT / "tox.ini").read_text()
    words = [word for line in re.findall(r"install_extras\.py (.+)", tox) for word in line.split()]
    assert set(words) <= {*EXTRAS, "lab"}
