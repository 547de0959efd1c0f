"""What the user says about a trace file that its fields do not tell."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_lab.traces.formats import FORMATS
from pdd_lab.traces.row import UNITS_PER_S
from pdd_lab.traces.trace import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_lab.traces.row import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """How a file is to be read. None leaves a value to its fields.

    Raises:
        ConfigurationError: a name that does not exist, or a size out of its range.
    """

    format: str | None = None
    """One of `FORMATS`."""
    block_size: int | None = None
    """Prompt tokens of a hash block."""
    time_unit: str | None = None
    """Of the timestamps, one of `UNITS_PER_S`."""

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--format", self.format, FORMATS),
            ("--time-unit", self.time_unit, UNITS_PER_S),
        ):
            if value is not None and value not in known:
                raise ConfigurationError(f"{flag} {value} is none of {', '.join(known)}")
        if self.block_size is not None and not 1 <= self.block_size <= MOST_TOKENS:
            raise ConfigurationError(f"--block-size {self.block_size} is not from 1 to {MOST_TOKENS}")

    @property
    def given(self) -> Mapping[str, object]:
        """What the user said, by flag."""
        flags = {"--format": self.format, "--block-size": self.block_size, "--time-unit": self.time_unit}
        return MappingProxyType({flag: value for flag, value in flags.items() if value is not None})

    def applied(self, kind: type[Row]) -> type[Row]:
        """Return a format with the units that the user said.

        Raises:
            ConfigurationError: the format has no such unit.
        """
        if self.block_size is not None:
            if kind.hash_block is None:
                raise ConfigurationError(f"--block-size: traces of the format {kind.name} have no hash blocks")
            kind = kind.with_units(hash_block=self.block_size)
        if self.time_unit is not None:
            if kind.units_per_s is None:
                raise ConfigurationError(f"--time-unit: timestamps of the format {kind.name} are dates")
            kind = kind.with_units(units_per_s=UNITS_PER_S[self.time_unit])
        return kind


AS_ITS_FIELDS_SAY = TraceOptions()
"""The user says nothing."""
