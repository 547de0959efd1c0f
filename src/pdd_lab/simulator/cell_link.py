"""The link over which devices get cells of the cloud's KV cache: how fast it is, and what its bytes cost."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pdd_cli.link import Link
from pdd_core.errors import ConfigurationError
from pdd_core.planner.cost import GPU_HOUR_PRICE, byte_weight

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud

_USUAL_SPREAD = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class CellLink:
    """One kind of link, the same for all devices."""

    bytes_per_s: float
    """Goodput, the mean over requests."""
    spread: float = _USUAL_SPREAD
    """Relative standard deviation from request to request."""
    cell_bytes: int
    """Of one token's cell, as the cloud sends it."""
    always: bool = False
    """Whether every handoff with the whole prompt uses cells; else the planner chooses."""
    metered: bool = False
    price_per_gb: float = 0.0
    """Of 10^9 bytes, in any currency."""
    gpu_hour_price: float = GPU_HOUR_PRICE
    """Of one of the cloud's engines, in the same."""
    byte_weight: float = 0.0
    """Token-seconds of one byte; see `pdd_core.planner.cost.byte_weight`."""

    @property
    def cells_per_s(self) -> float:
        """Cells per second, the mean over requests."""
        return self.bytes_per_s / self.cell_bytes


LINKS = MappingProxyType(
    {
        # Ookla, Speedtest: 4G 12 to 22 Mbit/s in a crowd (January 2025)
        "4g": (20e6 / 8, 0.5),
        # the same: 151 Mbit/s in that crowd; 203 in the median worldwide (third quarter of 2023)
        "5g": (150e6 / 8, 0.4),
        # the same: 84 Mbit/s in the median of fixed networks worldwide (third quarter of 2023), which is less than
        # what Wi-Fi at home carries
        "wifi": (80e6 / 8, 0.3),
        # gigabit Ethernet: 1,448 of each 1,538 bytes are TCP's payload
        "lan": (940e6 / 8, 0.05),
    }
)
"""Bytes per second and spread by name. Goodput is what was published, rounded, and the spread is assumed."""


def link_speed(text: str) -> tuple[float, float]:
    """Return bytes per second and spread of a link, by name or as ``100mbit``.

    Raises:
        ConfigurationError: `text` is neither.
    """
    if (known := LINKS.get(text.lower())) is not None:
        return known
    if "/" in text:
        raise ConfigurationError(f"--link {text} has a round trip, which --rtt-ms says here")
    try:
        return Link.parse(text).bytes_per_s, _USUAL_SPREAD
    except ConfigurationError as error:
        raise ConfigurationError(
            f"--link {text} is none of {', '.join(LINKS)}, and no speed such as 100mbit"
        ) from error


def cell_link(
    cloud: MeasuredCloud,
    text: str | None,
    *,
    cell_bytes: int | None,
    always: bool,
    price_per_gb: float,
    gpu_hour_price: float,
) -> CellLink:
    """Return the link of the devices to `cloud`.

    Args:
        cloud: says what `text` and `cell_bytes` do not, and how many tokens an engine's KV cache holds.
        text: as `link_speed` takes it.
        cell_bytes: of one token's cell.
        always: as `CellLink.always`.
        price_per_gb: of 10^9 bytes.
        gpu_hour_price: of one engine, in the same currency.

    Raises:
        ConfigurationError: nobody says how fast the link is, or how large a cell.
    """
    size = cell_bytes or cloud.kv_cell_bytes
    if size is None:
        raise ConfigurationError(f"{cloud.name} does not say how large a cell is: --kv-cell-bytes does")
    if text is not None:
        speed, spread = link_speed(text)
    elif cloud.link_bps is not None:
        speed, spread = cloud.link_bps, cloud.link_spread
    else:
        raise ConfigurationError(f"{cloud.name} does not say how fast the link is: --link does")
    return CellLink(
        bytes_per_s=speed,
        spread=spread,
        cell_bytes=size,
        always=always,
        price_per_gb=price_per_gb,
        gpu_hour_price=gpu_hour_price,
        byte_weight=byte_weight(price_per_gb, gpu_hour_price, cloud.kv_tokens),
    )
