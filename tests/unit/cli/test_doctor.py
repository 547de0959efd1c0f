from __future__ import annotations

import json
import random
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
from contract_cloud import FEATURES, ContractCloud
from narrow_router import KNOWN, NarrowRouter
from rich.console import Console

from pdd_cli import host
from pdd_cli.doctor import installed as installed_module
from pdd_cli.doctor.findings import Level, fail, ok, warn
from pdd_cli.doctor.installed import distribution, laboratory
from pdd_cli.doctor.plugin import frontend_setting, plugins_setting
from pdd_cli.doctor.report import report
from pdd_cli.doctor.server import cloud_problem, device_model, proxy_finding
from pdd_core.errors import CloudRefused, CloudUnreachable, InvalidRequest, ModelError, SchemaVersionError


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("PDD", "pdd"),
        ("Pdd", "pdd"),
        ("pdd-device", "pdd"),
        ("pdd_device", "pdd"),
        ("pdd_vllm_plugin", "pdd"),
        ("pdd ", "pdd"),
        ("other, pdd", "other,pdd"),
        ('"pdd"', "pdd"),
        ("ppd", "pdd"),
    ],
)
def test_a_misspelt_name_is_quoted_and_corrected(value: str, right: str) -> None:
    finding = plugins_setting(value)
    assert finding.level is Level.FAIL
    assert "vLLM compares exactly" in finding.detail
    assert finding.fix == f"export VLLM_PLUGINS={right}"


@pytest.mark.parametrize(("value", "right"), [("", "pdd"), ("lora_resolver", "lora_resolver,pdd")])
def test_a_list_without_us_keeps_the_others(value: str, right: str) -> None:
    finding = plugins_setting(value)
    assert (finding.level, finding.fix) == (Level.FAIL, f"export VLLM_PLUGINS={right}")


@pytest.mark.parametrize("value", ["pdd", "other,pdd"])
def test_the_exact_name_is_fine(value: str) -> None:
    assert plugins_setting(value).level is Level.OK


def test_unset_is_a_warning_because_endpoint_plugins_would_not_load() -> None:
    finding = plugins_setting(None)
    assert finding.level is Level.WARN
    assert "no endpoint plugin" in finding.detail


@pytest.mark.parametrize(("value", "count"), [(None, 0), ("0", 0), ("", 0), ("1", 1)])
def test_the_rust_front_end_is_a_failure(value: str | None, count: int) -> None:
    assert [finding.level for finding in frontend_setting(value)] == [Level.FAIL] * count


def test_the_tested_range_is_read_from_our_own_metadata(monkeypatch) -> None:
    lines = ['vllm<0.33,>=0.26; extra == "cloud"', "rich>=13.9", 'accelerate; extra == "demo"']
    monkeypatch.setattr(installed_module.metadata, "requires", lambda _: lines)
    assert str(installed_module.tested_range("vllm")) == "<0.33,>=0.26"
    assert installed_module.tested_range("accelerate") is None


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("0.26.0", Level.OK),
        ("0.32.0+cpu", Level.OK),
        ("0.25.1", Level.FAIL),
        ("0.33.0", Level.WARN),
        (None, Level.WARN),
    ],
)
def test_a_version_outside_the_range_is_told(monkeypatch, version: str | None, level: Level) -> None:
    monkeypatch.setattr(installed_module.metadata, "requires", lambda _: ["vllm<0.33,>=0.26"])
    finding = distribution("vllm", version, purpose="a cloud", install='pip install ".[cloud]"')
    assert finding.level is level
    assert bool(finding.fix) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("version", "levels"), [(None, []), ("0.1.0", [Level.OK]), ("0.0.9", [Level.FAIL]), ("0.2.0", [Level.FAIL])]
)
def test_a_laboratory_that_is_there_must_have_our_version(version: str | None, levels: list[Level]) -> None:
    found = list(laboratory(version, "0.1.0"))
    assert [finding.level for finding in found] == levels
    assert all(
        ("pip install . ./src/pdd_lab" in finding.fix) is (finding.level is Level.FAIL) for finding in found
    )


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CloudUnreachable("no connection to h:1"), "no connection to h:1"),
        (CloudRefused("no", status=401), "refuses the key"),
        (CloudRefused("no", status=404), "the plugin is not active there"),
        (CloudRefused("odd", status=500), "odd"),
        (SchemaVersionError("too new: upgrade pdd-device here"), "upgrade pdd-device here"),
    ],
)
def test_each_way_a_cloud_can_fail_has_its_own_words_and_fix(error, says: str) -> None:
    finding = cloud_problem("http://h:1/v1", error)
    assert finding.level is Level.FAIL
    assert says in finding.detail
    assert finding.fix


def looked_at(render=lambda _: [1], *, trained=8192, n_ctx=4096) -> dict[str, Level]:
    template = SimpleNamespace(supports_tools=True)
    vocab = SimpleNamespace(size=10, eos_id=2, render_chat=render, chat_template=template)
    engine = SimpleNamespace(vocab=vocab, n_ctx_train=trained)
    return {finding.check: finding.level for finding in device_model("m.gguf", engine, n_ctx=n_ctx)}


def raising(error):
    def render(_):
        raise error

    return render


@pytest.mark.parametrize(("trained", "warned"), [(4096, False), (4095, True), (0, False)])
def test_a_context_beyond_the_training_is_told(trained: int, warned: bool) -> None:
    assert ("context length" in looked_at(trained=trained)) is warned


@pytest.mark.parametrize(
    ("render", "level"),
    [
        (lambda _: [1], Level.OK),
        (lambda _: [], Level.FAIL),
        (raising(ModelError("the model has no chat template")), Level.WARN),
        (raising(InvalidRequest("the template refuses these messages")), Level.FAIL),
    ],
    ids=["renders", "empty", "missing", "refuses"],
)
def test_the_chat_template_is_tried(render, level: Level) -> None:
    assert looked_at(render)["chat template"] is level


@pytest.fixture
def findings(monkeypatch):
    def use(*given) -> None:
        monkeypatch.setattr(sys.modules["pdd_cli.doctor.report"], "installed", lambda: iter(given))
        monkeypatch.setattr(host, "vllm_distribution", lambda: None)

    return use


@pytest.mark.parametrize(
    ("given", "code"), [([ok("a", "b")], 0), ([warn("a", "b", "c")], 0), ([ok("a", "b"), fail("c", "d", "e")], 1)]
)
def test_only_a_failure_is_an_error(findings, given, code: int) -> None:
    findings(*given)
    assert report(url=None, api_key=None, gguf=None, as_json=False, console=Console(quiet=True)) == code


def test_json_has_all_findings(findings, capsys) -> None:
    findings(ok("a", "b"), fail("c", "d", "e"))
    report(url=None, api_key=None, gguf=None, as_json=True, console=Console())
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "findings": [
            {"check": "a", "level": "ok", "detail": "b", "fix": ""},
            {"check": "c", "level": "fail", "detail": "d", "fix": "e"},
        ],
    }


def test_an_unreachable_cloud_is_a_finding_not_a_crash(findings, capsys) -> None:
    findings()
    code = report(url="http://127.0.0.1:9", api_key=None, gguf=None, as_json=True, console=Console())
    assert code == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["check"] == "cloud"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://cloud.example:8000/v1", "is asked through the proxy proxy.example:3128"),
        ("http://127.0.0.1:8000/v1", "other clients would ask the proxy proxy.example:3128"),
    ],
)
def test_a_proxy_in_the_way_is_told(monkeypatch, url: str, said: str) -> None:
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    [finding] = proxy_finding(url)
    assert finding.level is Level.WARN
    assert said in finding.detail
    assert "secret" not in finding.detail
    host = url.split("/")[2].split(":")[0]
    assert f"export NO_PROXY={host}" in finding.fix
    monkeypatch.setenv("no_proxy", host)
    assert list(proxy_finding(url)) == []


PLAIN = tuple(name for name in FEATURES if name not in ("inline", "by_post"))
STICKY = {"cookie": "llm-d-session", "session_header": None}
ALONE = "8 of 8 times with X-Session-ID, 8 of 8 in other conversations: one, or they share their states"
SEVERAL = "in other conversations: several, and a conversation stays on one"


@pytest.fixture
def same_names(monkeypatch) -> None:
    """The same conversations in each run: by chance, all others could be on one replica, too."""
    chance = random.Random(1)
    monkeypatch.setattr(
        sys.modules["pdd_cli.doctor.router"],
        "uuid4",
        lambda: SimpleNamespace(hex=f"{chance.getrandbits(128):032x}"),
    )


@pytest.mark.usefixtures("same_names")
@pytest.mark.parametrize(
    ("router", "count", "features", "router_says", "replicas", "way"),
    [
        (None, 1, FEATURES, "no sign", ALONE, "inside the stream; GET and DELETE /v1/pdd"),
        (None, 1, PLAIN, "no sign", ALONE, "read, and cancels sent, by GET and DELETE"),
        (
            {},
            3,
            FEATURES,
            "one is between: requests go to several replicas",
            SEVERAL,
            "inside the stream; GET and DELETE /v1/pdd",
        ),
        ({"drops": "headers"}, 3, FEATURES, "loses the key (HTTP 401)", SEVERAL, "POST /v1/completions"),
        ({"routes": KNOWN}, 3, FEATURES, "does not get through (HTTP 404)", SEVERAL, "POST /v1/completions"),
        (STICKY, 3, FEATURES, "cookies are set: llm-d-session", SEVERAL, "inside the stream; GET and DELETE"),
    ],
)
def test_a_router_is_found_by_what_it_takes_away(
    findings, capsys, router, count, features, router_says, replicas, way
) -> None:
    findings()
    with ExitStack() as stack:
        clouds = [stack.enter_context(ContractCloud(key="k", features=features)) for _ in range(count)]
        url = clouds[0].url
        if router is not None:
            url = stack.enter_context(NarrowRouter([cloud.url for cloud in clouds], **router)).url
        code = report(url=url, api_key="k", gguf=None, as_json=True, console=Console())
        assert all(cloud.states == {} for cloud in clouds), "the token's state is dropped"
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert code == 0
    assert router_says in found["router"]["detail"]
    assert replicas in found["replicas"]["detail"]
    assert way in found["way"]["detail"]
    assert {one["level"] for one in found.values()} == {"ok"}


def test_a_router_that_keeps_no_session_is_warned_of(findings, capsys) -> None:
    findings()
    with (
        ContractCloud(key="k") as one,
        ContractCloud(key="k") as other,
        NarrowRouter([one.url, other.url], session_header=None) as router,
    ):
        report(url=router.url, api_key="k", gguf=None, as_json=True, console=Console())
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["replicas"]["level"] == "warn"
    assert "4 of 8 times with X-Session-ID" in found["replicas"]["detail"]
    assert "consistent_hash" in found["replicas"]["fix"]


def test_a_lost_query_string_is_told_where_no_key_is_needed(findings, capsys) -> None:
    findings()
    with ContractCloud() as cloud, NarrowRouter([cloud.url], drops="headers") as router:
        report(url=router.url, api_key=None, gguf=None, as_json=True, console=Console())
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert "query strings are lost under /v1/pdd" in found["router"]["detail"]
    assert "POST /v1/completions" in found["way"]["detail"]
