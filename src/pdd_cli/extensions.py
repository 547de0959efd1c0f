"""Commands that other distributions add to `pdd-device`, by entry points of the group ``pdd_device.commands``."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NoReturn

from typer import Typer

from pdd_cli.extras import INSTALL
from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = "pdd_device.commands"
LAB = ("plan", "replay", "bench", "eval")
"""The commands of the distribution `pdd-lab`, which is installed apart."""


def add_installed(app: Typer) -> None:
    """Add every installed command to `app`: a function, or a `Typer` with commands of its own.

    A command that cannot be loaded is left out with a line on standard error: it must not take the others down.
    """
    found = set()
    for entry in entry_points(group=GROUP):
        try:
            command = entry.load()
            if not callable(command):
                raise TypeError("neither a function nor a Typer")  # noqa: TRY301 - told as any other mistake is
        except Exception as error:  # noqa: BLE001 - whatever a third party's module raises
            print(f"pdd-device: the command {entry.name} cannot be loaded: {error!r}", file=sys.stderr)  # noqa: T201
            continue
        found.add(entry.name)
        if isinstance(command, Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)
    for name in LAB:
        if name not in found:
            settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
            app.command(name, hidden=True, context_settings=settings)(_missing(name))


def _missing(name: str) -> Callable[[], NoReturn]:
    def refuse() -> NoReturn:
        raise ConfigurationError(f"pdd-device {name} is part of pdd-lab: {INSTALL['lab']}")

    return refuse
