"""The pages of docs/reference. Each function returns a title and the parts below it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from docstrings import arguments, attributes, code, markdown, sentence, shown, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

__all__ = ["cli", "errors", "fields", "hooks", "settings", "wire"]


def cli() -> list[str]:
    """Return every command of `pdd-device`, its options with defaults and variables."""
    from typer.main import get_command

    from pdd_cli.extensions import LAB
    from pdd_cli.main import app

    root: Any = get_command(app)
    commands = [one for one in root.commands.items() if one[0] in LAB or "pdd_cli" in one[1].callback.__module__]
    if any(command.hidden for _, command in commands):
        sys.exit("the commands of src/pdd_lab are missing: pip install --editable src/pdd_lab")
    parts = ["The command line", root.help]
    for name, command in commands:
        for path, one in _leaves(f"pdd-device {name}", command):
            hints = get_type_hints(one.callback)
            rows = [_option(option, hints[option.name]) for option in one.params]
            text = [f"## {path}", "\n\n".join(markdown(part) for part in inspect.cleandoc(one.help).split("\n\n"))]
            parts += [*text, table(["option", "default", "meaning"], rows)] if rows else text
    return parts


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    else:
        for name, one in inner.items():
            yield from _leaves(f"{path} {name}", one)


def _option(option: Any, hint: Any) -> list[str]:
    value = option.metavar or next(filter(None, map(_value, _kinds(hint))), "")
    names = (
        [option.name.upper()] if option.param_type_name == "argument" else [*option.opts, *option.secondary_opts]
    )
    spelt = " / ".join(names) + (f" {value}" if value and option.opts[0].startswith("-") else "")
    variable = f" Variable: `{option.envvar}`." if option.envvar else ""
    default = "required" if option.required else "" if option.default is None else shown(option.default)
    return [code(spelt), default, markdown(option.help or "") + variable]


_VALUES = {Path: "PATH", int: "N", float: "X", str: "TEXT"}


def _value(kind: Any) -> str:
    is_choice = inspect.isclass(kind) and issubclass(kind, Enum)
    return "|".join(one.value for one in kind) if is_choice else _VALUES.get(kind, "")


def _kinds(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in get_args(hint):
        yield from _kinds(inner)


def settings() -> list[str]:
    """Return the plugin's settings, the variables of both sides, and the settings of `pdd-device serve`."""
    from typer.main import get_command

    from pdd_cli.main import app
    from pdd_core.env import Env, ServeSettings
    from pdd_core.llama_params import LlamaParams
    from pdd_core.patience import Patience
    from pdd_vllm_plugin.config import PDDConfig

    root: Any = get_command(app)
    flags = {{"cloud": "cloud_url"}.get(one.name, one.name): one.opts[0] for one in root.commands["serve"].params}
    nested = {"patience": "`PDD_PATIENCE__FIRST_TOKEN_S` and so on"}
    rows = []
    for name, default, text in [*_settings(LlamaParams), *_settings(ServeSettings)]:
        words = [f"`{name}`", nested.get(name, f"`PDD_{name.upper()}`"), code(flags.get(name, ""))]
        rows.append([", ".join(filter(None, words)), "see below" if name in nested else default, text])
    return [
        "Settings",
        "[Settings](../settings.md) says where each kind is set, and which wins.",
        "## vLLM's plugin",
        "In `--additional-config '{\"pdd\": {...}}'`.",
        table(["setting", "default", "meaning"], ([f"`{name}`", *rest] for name, *rest in _settings(PDDConfig))),
        "## Environment, both sides",
        table(
            ["variable", "default", "meaning"],
            ([f"`PDD_{name.upper()}`", *rest] for name, *rest in _settings(Env)),
        ),
        "## pdd-device serve",
        "As a name in the TOML file, a variable, or a flag.",
        table(["setting", "default", "meaning"], rows),
        "## Patience",
        "Time limits in seconds, and retry budgets: a table `[patience]` in the TOML file.",
        table(["setting", "default", "meaning"], ([f"`{name}`", *rest] for name, *rest in _settings(Patience))),
    ]


def _settings(kind: Any) -> Iterator[tuple[str, str, str]]:
    given = getattr(kind, "model_fields", None) or {one.name: one for one in dataclasses.fields(kind)}
    for name, (_, text) in attributes(kind).items():
        default = given.get(name) and given[name].default
        if name in given:
            known = isinstance(default, bool | int | float | str | tuple)
            yield name, shown(default) if known else "none", sentence(re.sub(r"^PDD_[\w*]+: ", "", text))


def errors() -> list[str]:
    """Return the tree of the errors, and a row for each."""
    from pdd_core import errors as module

    rows = []
    for name in [name for name, kind in vars(module).items() if inspect.isclass(kind)]:
        text, _, mend = inspect.cleandoc(getattr(module, name).__doc__).partition("What to do: ")
        rows.append([f"`{name}`", markdown(text), sentence(mend)])
    tree = re.sub(r"(?<=\w) {2,}.*", "", inspect.cleandoc(module.__doc__ or "").partition("::\n\n")[2])
    return [
        "Errors",
        "[Errors](../errors.md) says how they reach a program, a client and a user.",
        f"```text\n{inspect.cleandoc(tree)}\n```",
        table(["class", "raised when", "what to do"], rows),
    ]


def fields() -> list[str]:
    """Return the local server's table of fields, a section per route."""
    from pdd_llamacpp_adapter.server.wire.field_table import CHAT, COMPLETIONS, RESPONSES, Fate

    parts = [
        "Request fields",
        "Every field of OpenAI's and vLLM's requests, and what the [local server](../server.md) does with it. A "
        "refused field makes a 400 that names it, unless it is null or asks for nothing. A field that neither API "
        "has is ignored.",
    ]
    for route, rows in (("chat/completions", CHAT), ("completions", COMPLETIONS), ("responses", RESPONSES)):
        by_fate = sorted(rows.items(), key=lambda row: (list(Fate).index(row[1].fate), row[0]))
        parts += [
            f"## /v1/{route}",
            table(["field", "", ""], ([f"`{name}`", row.fate.value, _remark(row)] for name, row in by_fate)),
        ]
    return parts


def _remark(row: Any) -> str:
    passes = f"; `{json.dumps(row.passes[0])}` passes" if row.passes else ""
    return row.note + passes


def hooks() -> list[str]:
    """Return each hook with its docstring, and every class that a hook is given or returns."""
    from pdd_core import hookspecs
    from pdd_core.planner import types
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores

    parts = ["Hooks", "[Hooks](../hooks.md) says how to write one, who asks it, and when."]
    for name, hook in vars(hookspecs.PDDSpecs).items():
        if name.startswith("pdd_"):
            signature = str(inspect.signature(hook)).replace("'", "").replace("(self, ", "(")
            text = inspect.cleandoc(hook.__doc__).split("\n\n")
            parts += [f"## {name}", f"```python\ndef {name}{signature}: ...\n```", *map(markdown, text)]
    due = arguments(hookspecs.Pacer.due)
    parts += [
        "## Pacer",
        "A pacer has one method, `due`, whose arguments but `now` are keywords.",
        table(["argument of `due`", "meaning"], ([f"`{name}`", sentence(text)] for name, text in due.items())),
    ]
    planning = (types.PlanRequest, types.DeviceState, types.CloudState, types.Estimate, types.Plan, types.Why)
    given = (hookspecs.BudgetRequest, hookspecs.CloudLoad, hookspecs.PaceRequest, hookspecs.PaceTarget)
    for kind in (*given, *planning, PromptScores, RefinePrompt):
        default = {one.name: one.default for one in dataclasses.fields(kind)}
        rows = []
        for name, (spelt, text) in attributes(kind).items():
            is_plain = default[name] is None or isinstance(
                default[name], bool | int | float | str | tuple | frozenset
            )
            rows.append([f"`{name}`", f"`{spelt}`", shown(default[name]) if is_plain else "", markdown(text)])
        first = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
        parts += [f"## {kind.__name__}", markdown(first), table(["field", "type", "default", "meaning"], rows)]
    return parts


def wire() -> list[str]:
    """Return the opt-in fields, and the fields of every object that the cloud answers with."""
    from pdd_core import handoff, optin
    from pdd_core.fingerprint import TokenizerFingerprint
    from pdd_core.kv import geometry
    from pdd_core.sampling_defaults import DefaultSamplingParams
    from pdd_vllm_plugin.generate_recorder import SAMPLING_FIELDS

    asked = attributes(optin.OptIn)
    names = [(name, name.removeprefix(optin.PREFIX).replace("handoff", "handoff_id")) for name in optin.FIELDS]
    rows = [[f"`{name}`", _BOUNDS[key](optin), markdown(asked[key][1])] for name, key in names]
    parts = [
        "The wire's fields",
        f"[The wire](../wire.md) says how they are used. This is schema version `{handoff.SCHEMA_VERSION}`.",
        "## Opt-in fields",
        "In vLLM's `vllm_xargs`. A meaning that speaks of None means that the field is left out.",
        table(["field", "type and bounds", "meaning"], rows),
    ]
    models = (
        handoff.HandoffState,
        handoff.HandoffUpdate,
        handoff.DecodeBudget,
        handoff.Refinement,
        handoff.NoRefinement,
        handoff.KVCells,
        geometry.NoKV,
    )
    told = (handoff.CloudInfo, handoff.Limits, handoff.StructuredOutputs, DefaultSamplingParams)
    answers = (*told, geometry.KVGeometry, geometry.RopeGeometry, geometry.KVPart, TokenizerFingerprint)
    for model in (*models, *answers, handoff.VocabularyPiece, handoff.HandoffDeleted):
        first = markdown(inspect.cleandoc(model.__doc__ or "").split("\n\n")[0])
        parts += [f"## {model.__name__}", first, table(["field", "type", "meaning"], _fields(model))]
        if model is handoff.HandoffState:
            statuses = ", ".join(f"`{status}`" for status in handoff.Status)
            sampling = ", ".join(f"`{name}`" for name in SAMPLING_FIELDS)
            parts += [f"`status` is one of {statuses}.", f"`sampling_params` may have {sampling}."]
    return parts


def _chars(bounds: tuple[int, int]) -> str:
    return f"string of {bounds[0]} to {bounds[1]} characters of `A-Z a-z 0-9 . _ -`"


_BOUNDS = {
    "handoff_id": lambda optin: _chars(optin.HANDOFF_ID_CHARS),
    "decode_budget": lambda optin: f"integer, 1 to {optin.MAX_DECODE_BUDGET:,}",
    "least_budget": lambda optin: f"integer, 1 to {optin.MAX_DECODE_BUDGET:,}, at most `{optin.DECODE_BUDGET}`",
    "refine_ratio": lambda _: "number, above 0 and at most 1",
    "protect": lambda optin: (
        f"list of integers `[start, end, start, end, ...]`, increasing, at most {optin.MAX_PROTECTED:,} spans, "
        "within the prompt"
    ),
    "tenant": lambda optin: _chars(optin.TENANT_CHARS),
    "extends": lambda optin: _chars(optin.HANDOFF_ID_CHARS),
    "inline": lambda _: "`true` or `false`",
    "kv": lambda _: "`true` or `false`",
    "tokenizer": lambda optin: f"{optin.DIGEST_CHARS} hexadecimal digits",
}


def _fields(model: type[BaseModel]) -> Iterator[list[str]]:
    texts = attributes(model)
    for name, schema in model.model_json_schema()["properties"].items():
        yield [f"`{name}`", _type(schema), markdown(texts[name][1])]


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "string" if name in {"Status", "CellType"} else f"[{name}](#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(map(_type, parts))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return "pair of integers"
        items = schema["items"]
        return "pairs of integers" if "prefixItems" in items else _type(items).replace(" or ", "s or ") + "s"
    return str(schema.get("type", "any"))
