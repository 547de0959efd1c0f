"""Would vLLM, started from this shell, load the plugin? It stays silent when it does not."""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pdd_cli.cloud_command import PLUGIN, allow_list
from pdd_cli.doctor.findings import fail, ok, warn
from pdd_cli.extras import CLONE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pdd_cli.doctor.findings import Finding

GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
_NAMES = ("pdd", "pdd-device", "pdd-vllm-plugin")
"""What people write when they mean us."""


def plugin(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check the entry points, and the settings that decide whether vLLM uses them."""
    yield from (registered(group) for group in GROUPS)
    yield plugins_setting(environ.get("VLLM_PLUGINS"))
    yield from frontend_setting(environ.get("VLLM_USE_RUST_FRONTEND"))


def registered(group: str) -> Finding:
    """Check that our entry point in `group` is there."""
    if found := entry_points(group=group, name=PLUGIN):
        return ok(group, next(iter(found)).value)
    return fail(group, f"no entry point {PLUGIN!r}", f"{CLONE}pip install --force-reinstall --no-deps .")


def plugins_setting(value: str | None) -> Finding:
    """Check VLLM_PLUGINS, an exact comma-separated list of names (vLLM strips nothing)."""
    check = "VLLM_PLUGINS"
    if value is None:
        return warn(
            check,
            "unset: plain `vllm serve` loads no endpoint plugin (`pdd-device cloud` sets it by itself)",
            f"export VLLM_PLUGINS={PLUGIN}",
        )
    names = value.split(",")
    if PLUGIN in names:
        return ok(check, value)
    for name in names:
        if _means_us(name):
            right = allow_list(",".join(other for other in names if other != name))
            detail = f"{name!r} is not {PLUGIN!r}: vLLM compares exactly"
            return fail(check, detail, f"export VLLM_PLUGINS={right}")
    return fail(check, f"{value!r} does not name {PLUGIN!r}", f"export VLLM_PLUGINS={allow_list(value)}")


def _means_us(name: str) -> bool:
    plain = name.strip(" \t\"'").lower().replace("_", "-")
    return bool(difflib.get_close_matches(plain, _NAMES, n=1, cutoff=0.6))


def frontend_setting(value: str | None) -> Iterator[Finding]:
    """Check VLLM_USE_RUST_FRONTEND: that front end knows no endpoint plugins."""
    if value not in {None, "", "0"}:
        yield fail(
            "VLLM_USE_RUST_FRONTEND",
            f"{value}: vLLM's Rust front end loads no endpoint plugin",
            "unset VLLM_USE_RUST_FRONTEND",
        )
