"""Files that stand in two places are the same, and lists of things name them all."""

import configparser
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_demos_document_is_the_examples_document():
    shipped = ROOT / "src/pdd_cli/data/declaration.txt"
    assert (ROOT / "examples/declaration.txt").read_bytes() == shipped.read_bytes()


def test_both_distributions_have_one_licence_and_one_version():
    laboratory = ROOT / "src/pdd_lab"
    assert (laboratory / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    versions = [
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in (ROOT, laboratory)
    ]
    assert versions[0] == versions[1]


def test_every_example_is_listed():
    listed = re.findall(r"^\| \[([\w./]+)\]", (ROOT / "examples/README.md").read_text(), re.MULTILINE)
    there = {path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert set(listed) == there - {"__pycache__"}


def test_every_tox_environment_is_described():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    environments = [name.removeprefix("testenv:") for name in tox.sections() if name.startswith("testenv:")]
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert rows == environments


def test_fragments_have_a_section_and_a_type_that_towncrier_knows():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    folder = ROOT / settings["directory"]
    sections = "|".join(section["path"] for section in settings["section"])
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in set(names) - {"README.md", ".gitignore"}:
        assert re.fullmatch(rf"({sections})/(\+[\w-]+|\d+)\.(feature|bugfix|doc|removal|misc)\.md", name), name


def test_the_newest_news_are_those_of_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    title = (ROOT / "CHANGELOG.md").read_text().splitlines()[0]
    assert re.fullmatch(rf"# pdd-device {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", title)


def test_decisions_are_numbered_without_gaps():
    numbers = sorted(int(path.name[:3]) for path in (ROOT / "docs/adr").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))
