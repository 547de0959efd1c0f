"""The documents name everything there is, and their code is right as far as it needs no engine."""

import ast
import importlib
import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry
from readme import blocks, run

import pdd_llamacpp_adapter
from pdd_core import errors, hookspecs
from pdd_core.env import Env, ServeSettings
from pdd_core.fingerprint import TokenizerFingerprint
from pdd_core.handoff import (
    CloudInfo,
    DecodeBudget,
    HandoffState,
    HandoffUpdate,
    KVCells,
    Limits,
    NoRefinement,
    Refinement,
    Status,
)
from pdd_core.kept_fields import KEPT_IDS, MAX_KEPT_IDS, MAX_STOP_CHARS
from pdd_core.kv.frames import HEADER_BYTES, MEDIA_TYPE
from pdd_core.kv.geometry import KV_VERSION, PIECE_TOKENS, KVGeometry, KVPart, NoKV, NoKVReason, RopeGeometry
from pdd_core.optin import (
    FIELDS,
    HANDOFF_ID_CHARS,
    MAX_DECODE_BUDGET,
    MAX_PROTECTED,
    STOP_REASON,
)
from pdd_core.patience import Patience
from pdd_core.planner import types
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.scores import PromptScores
from pdd_core.sampling_defaults import DefaultSamplingParams
from pdd_core.state_request import AFTER, BY_POST, FROM, MAX_WAIT_S, TO, USED, WAIT
from pdd_core.timeline import Timeline
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.session.answer_session import AnswerSession
from pdd_llamacpp_adapter.session.outcome import Mode, Outcome
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import SAMPLING_FIELDS
from pdd_vllm_plugin.handoff_names import MAX_REQUEST_ID_CHARS
from pdd_vllm_plugin.handoff_record import HandoffRecord
from pdd_vllm_plugin.handoff_routes import make_router
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import NOT_STARTED_TTL_S
from pdd_vllm_plugin.kv.cell_answers import MAX_STREAMS
from pdd_vllm_plugin.kv.cells_response import STALL_S
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.middleware import MAX_PARSED_BYTES, PATHS
from pdd_vllm_plugin.shared_store.store_metrics import StoreMetrics
from pdd_vllm_plugin.tombstones import MAX_REFUSED, MAX_TOMBSTONES, TOMBSTONE_TTL_S

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
SETTINGS = (REFERENCE / "settings.md").read_text()
FIELDS_ON_THE_WIRE = (REFERENCE / "wire.md").read_text()
GIVEN_TO_HOOKS = (REFERENCE / "hooks.md").read_text()
WIRE = (DOCS / "wire.md").read_text()
HOOKS = (DOCS / "hooks.md").read_text()
POLICIES = (DOCS / "policies.md").read_text()
DEVICE = (DOCS / "device.md").read_text()
SERVER = (DOCS / "server.md").read_text()
ERRORS = (REFERENCE / "errors.md").read_text()
PYTHON = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PAGES = [*PYTHON, *sorted(REFERENCE.glob("*.md"))]


def unnamed(names, text):
    # what stands between two spans of code is none
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text), *re.findall(r"```python\n(.*?)```", text, re.DOTALL)])
    return [name for name in names if not re.search(rf"(?<!\w){re.escape(str(name))}(?!\w)", code)]


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    "model",
    [
        HandoffState,
        HandoffUpdate,
        CloudInfo,
        Limits,
        DecodeBudget,
        Refinement,
        NoRefinement,
        KVCells,
        NoKV,
        KVGeometry,
        RopeGeometry,
        KVPart,
        TokenizerFingerprint,
        DefaultSamplingParams,
    ],
)
def test_every_field_has_its_row(model):
    table = section(FIELDS_ON_THE_WIRE, model.__name__)
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(model.model_fields)


def test_every_opt_in_field_has_its_row():
    table = section(FIELDS_ON_THE_WIRE, "Opt-in fields")
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FIELDS)


def test_opt_in_fields_statuses_and_sampling_parameters_are_named():
    assert not unnamed([*FIELDS, STOP_REASON, *PATHS], WIRE)
    assert not unnamed([*Status, *SAMPLING_FIELDS], section(FIELDS_ON_THE_WIRE, "HandoffState"))


def test_every_question_by_post_has_its_row():
    rows = re.findall(r"^\| `(pdd_\w+)`[^|]*\| ([^|]*)\|", section(WIRE, "Questions by POST"), re.MULTILINE)
    assert {name for name, _ in rows} == set(BY_POST)
    assert {name for _, others in rows for name in re.findall(r"`(\w+)`", others)} == {AFTER, WAIT, USED, FROM, TO}


def test_every_reason_why_there_are_no_cells_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \| \w", section(WIRE, "KV cache"), re.MULTILINE)
    assert rows == ["reason", *get_args(NoKVReason)]


def test_the_stream_of_cells_is_as_the_code_makes_it():
    text = " ".join(section(WIRE, "KV cache").split())
    for part in (
        f"as `{MEDIA_TYPE}`",
        f"a header of {HEADER_BYTES} bytes",
        f"up to {PIECE_TOKENS} tokens and begins at a multiple of {PIECE_TOKENS}",
        f"At most {MAX_STREAMS} streams",
        f"takes nothing for {STALL_S:g} seconds",
    ):
        assert part in text, part
    assert f"It is `{KV_VERSION}`." in WIRE
    assert f"for `kv_ttl_s` seconds ({PDDConfig().kv_ttl_s:g})" in WIRE


def test_bounds_are_the_codes():
    shortest, longest = HANDOFF_ID_CHARS
    for text in (
        f"0 to {MAX_WAIT_S:g} seconds",
        f"after {NOT_STARTED_TTL_S:g} seconds",
        f"lasts {TOMBSTONE_TTL_S:g} seconds",
        f"the newest {MAX_TOMBSTONES:,} names are kept",
        f"at most {MAX_REFUSED:,} of them",
        f"of `stop` and `bad_words` together {MAX_STOP_CHARS:,}",
        f"of `X-Request-Id` {MAX_REQUEST_ID_CHARS}",
        f"`{KEPT_IDS[-1]}` together {MAX_KEPT_IDS:,}",
        f"above {MAX_PARSED_BYTES // 2**20} MiB",
        f"`ttl_s` seconds ({PDDConfig().ttl_s:g})",
        f"`max_handoffs` states ({PDDConfig().max_handoffs:,})",
        f"({PDDConfig().max_state_tokens:,})",
    ):
        assert text in " ".join(WIRE.split()), text
    bounds = (
        f"{shortest} to {longest} characters",
        f"1 to {MAX_DECODE_BUDGET:,}",
        f"at most {MAX_PROTECTED:,} spans",
    )
    for text in bounds:
        assert text in section(FIELDS_ON_THE_WIRE, "Opt-in fields"), text


def test_every_route_has_its_row_and_no_other():
    rows = re.findall(r"^\| `(GET|DELETE) ([^`?]+)", section(WIRE, "Routes"), re.MULTILINE)
    routes = [route for route in make_router(HandoffService()).routes if route.include_in_schema]
    served = [(method, route.path) for route in routes for method in route.methods]
    shown = [(method, re.sub(r"\{\w+\}", "{id}", path)) for method, path in served]
    assert sorted(rows) == sorted(shown)


def test_the_end_of_the_clouds_part_is_as_the_record_sees_it():
    table = section(WIRE, "The end of the cloud's part")
    rows = re.findall(r"^\| `(\w+)` \| `?(\w+)[^|]*\|[^|]*\| `(\w+)` \|$", table, re.MULTILINE)
    assert len(rows) == 4
    for finish, stop, status in rows:
        record = HandoffRecord(None, "c", "e", "m", "t", {}, 0.0, 0.0)
        record.end(finish, None if stop == "null" else stop)
        assert record.status == status


def test_every_setting_and_variable_is_named():
    settings = (REFERENCE / "settings.md").read_text()
    assert not unnamed([field.name for field in fields(PDDConfig)], settings)
    assert not unnamed([f"PDD_{name.upper()}" for name in Env.model_fields], settings)


def test_every_setting_of_the_server_has_its_row_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)`, `PDD_\w+`[^|]*\| ([^|]*) \|", SETTINGS, re.MULTILINE))
    assert list(rows) == list(ServeSettings.model_fields)
    for name, field in ServeSettings.model_fields.items():
        if isinstance(field.default, bool | int | float):
            assert rows[name] == str(field.default).lower().removesuffix(".0")
        elif field.default == "auto" or name in ("gguf", "host", "pacing"):
            assert rows[name] == field.default
    for name in ServeSettings.model_fields:
        assert f"`PDD_{name.upper()}" in SETTINGS


def test_the_settings_file_that_is_shown_can_be_read(tmp_path):
    file = tmp_path / "pdd.toml"
    file.write_text(blocks(DOCS / "server.md", "toml")[0])
    settings = ServeSettings.load(file, {})
    assert (settings.port, settings.rate, settings.patience.first_token_s) == (8090, 12.0, 5.0)


def test_every_limit_of_the_patience_has_its_row_with_its_default():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section(SETTINGS, "Patience"), re.MULTILINE))
    assert {name: float(value) for name, value in rows.items()} == asdict(Patience())


def test_every_route_of_the_server_has_its_row():
    app = create_app(Service(HttpLimits()))
    paths = {re.sub(r"\{[^}]*\}", "{id}", route.path) for route in app.routes if "responses/" not in route.path}
    assert not unnamed(paths, section(SERVER, "Routes"))


def test_what_the_server_tells_of_an_answer_is_named():
    outcome = Outcome(Mode.HANDOFF, "stop", Timeline(), 1, None, None, None, None, 0, None, None, 0)
    told = outcome.summary()
    assert not unnamed([*set(told) - {"finish_reason"}, *told["tokens"]], section(SERVER, "What happened"))


def test_every_setting_of_the_plugin_has_its_row_with_its_default():
    table = section(SETTINGS, "vLLM's plugin")
    shown = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, re.MULTILINE))
    assert list(shown) == [field.name for field in fields(PDDConfig)]
    for name in ("default_decode_budget", "max_decode_budget", "ttl_s", "cancel_timeout_s"):
        assert float(shown[name].replace(",", "")) == getattr(PDDConfig(), name)
    assert (shown["strict"], PDDConfig().strict) == ("false", False)
    assert (shown["max_handoffs"], shown["max_state_tokens"]) == ("1024", "16,000,000")


def test_the_load_settings_have_their_rows_with_the_codes_defaults():
    rows = dict(re.findall(r"^\| `(load_\w+)` \| ([^|]*) \|", POLICIES, re.MULTILINE))
    assert list(rows) == [field.name for field in fields(PDDConfig) if field.name.startswith("load_")]
    for name, shown in rows.items():
        default = getattr(PDDConfig(), name)
        if isinstance(default, tuple):
            assert shown == ", ".join(map(str, default))
        else:
            assert shown == ("null" if default is None else f"{default:g}")


def test_every_metric_has_its_row_and_no_other():
    registry = CollectorRegistry()
    CloudMetrics(registry)
    StoreMetrics(registry)
    names = {"counter": "{}_total", "gauge": "{}", "histogram": "{}"}
    there = [(names[metric.type].format(metric.name), metric.type) for metric in registry.collect()]
    rows = re.findall(r"^\| `(pdd_\w+)` \| (\w+)", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(there)


def test_every_error_class_has_its_row():
    assert re.findall(r"^\| `(\w+)` \|", ERRORS, re.MULTILINE) == [
        name for name, kind in vars(errors).items() if inspect.isclass(kind)
    ]


def test_every_hook_has_its_row_with_its_arguments():
    for name, hook in vars(hookspecs.PDDSpecs).items():
        if name.startswith("pdd_"):
            signature = str(inspect.signature(hook)).replace("'", "").replace("(self, ", "(").replace("|", "\\|")
            assert f"| `{name}{signature}` |" in HOOKS


def test_everything_that_a_hook_is_given_has_its_rows():
    own = (hookspecs.BudgetRequest, hookspecs.CloudLoad, hookspecs.PaceRequest, hookspecs.PaceTarget)
    for given in (*own, types.PlanRequest, types.DeviceState, types.CloudState, PromptScores, RefinePrompt):
        rows = re.findall(r"^\| `(\w+)` \|", section(GIVEN_TO_HOOKS, given.__name__), re.MULTILINE)
        assert rows == [field.name for field in fields(given)]


def test_every_argument_of_a_pacer_has_its_row():
    rows = re.findall(r"^\| `(\w+)` \|", section(GIVEN_TO_HOOKS, "Pacer"), re.MULTILINE)
    assert rows == [name for name in inspect.signature(hookspecs.Pacer.due).parameters if name != "self"]


def test_the_example_policy_is_the_one_shown():
    policy = (ROOT / "examples/policy_package/pdd_batch_budget.py").read_text()
    shown = blocks(DOCS / "hooks.md", "python")[0]
    [function] = [node for node in ast.parse(policy).body if isinstance(node, ast.FunctionDef)]
    assert ast.unparse(function).replace("BUSY", "8") in ast.unparse(ast.parse(shown))
    assert blocks(DOCS / "hooks.md", "toml")[0] in (ROOT / "examples/policy_package/pyproject.toml").read_text()


def test_every_field_of_the_adapter_is_named():
    assert not unnamed([field.name for field in fields(AnswerRequest)], DEVICE)
    assert not unnamed([field.name for field in fields(Outcome)], DEVICE)
    assert not unnamed(Mode, DEVICE)
    assert not unnamed(inspect.signature(AnswerSession).parameters, DEVICE)


def test_the_code_about_hooks_runs():
    assert run(DOCS / "hooks.md") == 7


def test_the_code_about_the_planner_runs():
    assert run(DOCS / "planner.md") == 7


def test_what_the_device_page_says_of_a_wrong_request_is_so():
    [block] = [block for block in blocks(DOCS / "device.md", "python") if "except InvalidRequest" in block]
    exec(block, {"AnswerRequest": AnswerRequest})  # noqa: S102


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: path.name)
def test_every_import_in_a_code_block_names_what_there_is(path):
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("pdd_"):
                known = (
                    pdd_llamacpp_adapter.__all__
                    if node.module == "pdd_llamacpp_adapter"
                    else dir(importlib.import_module(node.module))
                )
                assert {alias.name for alias in node.names} <= set(known)
