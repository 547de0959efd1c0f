"""The blocks of docs/deploy.md can be copied: each is read by what it is for, and names settings that exist."""

import json
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from readme import blocks, serve_command

from pdd_cli.cloud_command import PLUGIN, PLUGIN_FLAGS
from pdd_core.env import ServeSettings
from pdd_vllm_plugin.config import PDDConfig

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/deploy.md"
BASH = blocks(PAGE, "bash")
SERVING = [block for block in BASH if "vllm serve" in block]
YAML = [yaml.safe_load(block) for block in blocks(PAGE, "yaml")]
OURS = dict(PLUGIN_FLAGS)


def pairs(words):
    return dict(pairwise(words))


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.split("\n")[0][:40])
def test_shells_can_read_the_commands(block):
    done = subprocess.run([shutil.which("bash"), "-n"], input=block, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_as_many_servers_as_ways():
    assert len(SERVING) == 5


@pytest.mark.parametrize("block", SERVING, ids=lambda block: block.split()[-1])
def test_servers_have_the_plugin_and_settings_that_exist(block):
    env, words = serve_command(block)
    assert env == {"VLLM_PLUGINS": PLUGIN}
    assert words[:3] == ["vllm", "serve", "MODEL"]
    assert OURS.items() <= pairs(words).items()
    if "--additional-config" in words:
        [(name, settings)] = json.loads(pairs(words)["--additional-config"]).items()
        assert name == PLUGIN
        assert PDDConfig(**settings) == PDDConfig()  # the page says that these are the defaults


def test_charts_start_the_same():
    [values] = [one for one in YAML if "servingEngineSpec" in one]
    [model] = values["servingEngineSpec"]["modelSpec"]
    assert pairs(model["vllmConfig"]["extraArgs"]).items() >= OURS.items()
    assert model["env"] == [{"name": "VLLM_PLUGINS", "value": PLUGIN}]
    assert values["routerSpec"] == {"routingLogic": "session", "sessionKey": "x-session-id"}


def test_the_endpoint_picker_names_its_plugins():
    [values] = [one for one in YAML if "router" in one]
    picker = values["router"]["epp"]
    config = yaml.safe_load(picker["pluginsCustomConfig"][picker["pluginsConfigFile"]])
    [profile] = config["schedulingProfiles"]
    assert [one["pluginRef"] for one in profile["plugins"]] == [one["type"] for one in config["plugins"]]


def test_ray_starts_the_same():
    [program] = blocks(PAGE, "python")
    compile(program, str(PAGE), "exec")
    for flag, value in PLUGIN_FLAGS:
        assert f'"{flag.removeprefix("--").replace("-", "_")}": "{value}"' in program


def uncommented(text):
    return "\n".join(line for line in text.splitlines() if line and not line.startswith("#"))


def test_the_page_shows_what_the_files_hold():
    [nginx] = blocks(PAGE, "nginx")
    assert uncommented(nginx) == uncommented((ROOT / "deploy/nginx.conf").read_text())
    [settings] = blocks(PAGE, "toml")
    assert uncommented(settings) == uncommented((ROOT / "deploy/serve.toml").read_text())
    assert set(tomllib.loads(settings)) <= set(ServeSettings.model_fields)
    [shown] = [one["scrape_configs"] for one in YAML if "scrape_configs" in one]
    [*whole] = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert all(job in whole for job in shown)


def test_every_alert_has_its_row():
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    text = PAGE.read_text().split("| alert | when |")[1]
    assert {word for word in text.split("`") if word.startswith("Pdd")} == alerts
