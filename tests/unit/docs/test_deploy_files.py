"""What deploy/ holds can be read by those it is for, and names only what exists."""

import configparser
import json
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from promql import OF_TARGETS, names

from pdd_cli.cloud_command import PLUGIN, PLUGIN_FLAGS
from pdd_core.env import Env, ServeSettings
from pdd_llamacpp_adapter.server.answers.server_metrics import ServerMetrics
from pdd_vllm_plugin.metrics import CloudMetrics

DEPLOY = Path(__file__).parents[3] / "deploy"
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
SCRAPE = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/pdd-device.json").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
PROMTOOL, SYSTEMD = shutil.which("promtool"), shutil.which("systemd-analyze")
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OTHERS = {
    "up": set(),
    # vLLM's own; tests/integration/fleet looks for them on a running one
    "vllm:num_requests_running": {"model_name", "engine"},
    "vllm:num_requests_waiting": {"model_name", "engine"},
    "vllm:kv_cache_usage_perc": {"model_name", "engine"},
    "vllm:time_to_first_token_seconds_bucket": {"model_name", "engine", "le"},
}


class NoQueue:
    running = waiting = 0


def samples_of(collectors):
    """The name of each sample, with its labels."""
    for collector in collectors:
        labels = set(collector._labelnames)
        for metric in collector.describe():
            suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
            for suffix in suffixes[metric.type]:
                yield metric.name + suffix, labels | ({"le"} if suffix == "_bucket" else set())


@pytest.fixture(scope="module")
def existing():
    registry = CollectorRegistry()
    CloudMetrics(registry)
    device = ServerMetrics(NoQueue())._registry
    ours = [*registry._collector_to_names, *device._collector_to_names]
    return OTHERS | dict(samples_of(ours))


EXPRESSIONS = {
    **{rule["alert"]: rule["expr"] for rule in RULES},
    **{f"{p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]},
}


def test_an_expression_is_taken_apart():
    text = 'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{job=~"$c", b!="d"}[5m]))) > 2 * vllm:y and z'
    assert names(text) == ({"x_bucket": {"job", "b"}, "vllm:y": set(), "z": set()}, {"le", "a"})


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_expressions_name_metrics_and_labels_that_exist(existing, expression):
    metrics, grouped = names(expression)
    assert metrics
    for metric, labels in metrics.items():
        assert metric in existing
        assert labels <= existing[metric] | OF_TARGETS
    for metric in metrics:
        assert grouped <= existing[metric] | OF_TARGETS


def test_every_metric_of_ours_is_in_the_dashboard(existing):
    shown = {metric for p in PANELS for t in p["targets"] for metric in names(t["expr"])[0]}
    ours = {name for name in existing if name.startswith("pdd_") and not name.endswith(("_sum", "_count"))}
    # nobody watches how long prompts are
    assert ours - shown == {"pdd_device_prompt_tokens_total"}


def test_legends_and_annotations_name_labels_of_their_expression(existing):
    for target in (target for panel in PANELS for target in panel["targets"]):
        _, grouped = names(target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped
    for rule in RULES:
        metrics, grouped = names(rule["expr"])
        there = grouped or set.union(*(existing[metric] for metric in metrics)) | OF_TARGETS
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= there


def test_the_dashboard_can_be_imported():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"} <= variables
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["description"] for panel in PANELS)


def test_jobs_that_rules_name_are_scraped():
    jobs = {job["job_name"] for job in SCRAPE["scrape_configs"]}
    named = set(re.findall(r'job="([\w-]+)"', " ".join(rule["expr"] for rule in RULES)))
    assert named <= jobs
    assert SCRAPE["rule_files"] == ["alerts.yml"]


@pytest.mark.skipif(PROMTOOL is None, reason="Prometheus is not installed")
@pytest.mark.parametrize("words", [["rules", "alerts.yml"], ["config", "--syntax-only", "prometheus.yml"]])
def test_prometheus_takes_the_files(words):
    command = [PROMTOOL, "check", *words]
    done = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def unit():
    read = configparser.ConfigParser(interpolation=None, strict=False)
    read.optionxform = str
    read.read(DEPLOY / "pdd-device.service")
    return read["Service"]


def test_the_unit_starts_the_server_with_settings_that_exist():
    service = unit()
    words = service["ExecStart"].split()
    assert words[1:3] == ["serve", "--config"]
    assert service["Environment"].split("=")[0] == "PDD_CACHE_DIR"
    assert "cache_dir" in Env.model_fields
    assert service["RestartPreventExitStatus"] == "2"
    assert float(service["TimeoutStopSec"]) > ServeSettings().grace_s


def test_the_file_of_settings_is_one(monkeypatch):
    settings = ServeSettings.load(DEPLOY / "serve.toml", {})
    assert settings.cloud_url == "https://llm.example/v1"
    assert settings.cloud_api_key is None


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path):
    text = (DEPLOY / "pdd-device.service").read_text().replace("/opt/pdd-device/bin/pdd-device", sys.executable)
    (tmp_path / "pdd-device.service").write_text(text)
    command = [SYSTEMD, "verify", str(tmp_path / "pdd-device.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_launchd_can_read_its_file():
    job = plistlib.loads((DEPLOY / "pdd-device.plist").read_bytes())
    assert job["ProgramArguments"][1:3] == ["serve", "--config"]
    assert set(job["EnvironmentVariables"]) == {"PDD_CLOUD_API_KEY"}
    assert job["KeepAlive"] == {"SuccessfulExit": False}


def test_the_image_copies_what_there_is_and_starts_what_the_readme_starts():
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    for _, words in (line for line in lines if line[0] == "COPY"):
        assert all((DEPLOY.parent / source).exists() for source in words.split()[:-1])
    [started] = [json.loads(words) for name, words in lines if name == "ENTRYPOINT"]
    assert started == ["vllm", "serve", *(word for flag in PLUGIN_FLAGS for word in flag)]
    assert ["ENV", f"VLLM_PLUGINS={PLUGIN}"] in lines


def test_what_hatchling_reads_is_in_the_image():
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    named = set(re.findall(r'"(?:/?)([A-Z]+(?:\.md)?)"', project))
    [copied] = [
        line.split()[1:-1] for line in (DEPLOY / "Dockerfile").read_text().splitlines() if "COPY py" in line
    ]
    assert {name for name in named if (DEPLOY.parent / name).is_file()} <= set(copied)


def test_envoy_keeps_sessions_and_waits():
    config = yaml.safe_load((DEPLOY / "envoy.yaml").read_text())["static_resources"]
    [cluster] = config["clusters"]
    manager = config["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    [route] = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert cluster["lb_policy"] == "RING_HASH"
    assert route["route"]["cluster"] == cluster["name"]
    assert route["route"]["timeout"] == "0s"
    assert route["route"]["hash_policy"] == [{"header": {"header_name": "x-session-id"}}]
