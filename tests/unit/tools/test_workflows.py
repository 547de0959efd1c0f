from __future__ import annotations

import configparser
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def test_workflows_run_environments_and_tests_that_exist() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    named = []
    for file in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values():
            named += re.findall(r"tox run -e (\w+)", "\n".join(step.get("run", "") for step in job["steps"]))
    assert named
    for name in named:
        for path in re.findall(r"tests/[\w/]+\.py", tox[f"testenv:{name}"]["commands"]):
            assert (ROOT / path).is_file()
