"""The one style of all pictures: `figure` begins one, `save` writes it as PNG and as SVG.

Made to be read at half its width, without a caption, and by the colour-blind: Okabe and Ito's colours, and a
marker or a label beside every colour. The same figures make the same files, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_cli.cache import check_writable, published
from pdd_cli.extras import require
from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLACK, GREY = "#000000", "#6E6E6E"
ORANGE, SKY, GREEN, YELLOW = "#E69F00", "#56B4E9", "#009E73", "#F0E442"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
"""Okabe and Ito, https://jfly.uni-koeln.de/color/."""

CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""The order for series that have no colour of their own."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One beside each of `CYCLE`."""

CLOUD, DEVICE, STALL = BLUE, GREEN, VERMILLION
"""Who made a token, and what the user should not have had to see. As on the terminal: blue and green."""

NOTE_SIZE = 8.5
"""Points, for text inside a picture."""

_RC: dict[str, Any] = {
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "pdd-device",  # the ids in the file would else be random
}
_DPI = 180
_SUFFIXES = (".png", ".svg")


def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = 6.4,
    height: float = 3.8,
    title: str | None = None,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """Return a new picture and its axes, row by row.

    Args:
        rows: of axes.
        columns: of axes.
        width: inches, of the whole picture. Text has a fixed size: a smaller picture has larger words.
        height: inches.
        title: above all axes; says what was measured, and where.
        options: as for matplotlib's ``Figure.subplots``: `sharex`, `sharey`, `height_ratios` and others.

    Raises:
        ConfigurationError: matplotlib is not installed.
    """
    require("plots", need="drawing a picture")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_RC):
        made = Figure(figsize=(width, height), layout="constrained")
        axes = made.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.set_prop_cycle(color=CYCLE)
    if title is not None:
        made.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    return made, list(axes.flat)


def heading(axes: Axes, text: str) -> None:
    """Write what `axes` show above them."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold")


def legend(axes: Axes, **options: Any) -> None:
    """Add a legend of what has a label."""
    axes.legend(**{"fontsize": NOTE_SIZE, "frameon": False, **options})


def plain_log_ticks(axis: Axis) -> None:
    """Number a logarithmic axis 1, 2, 5, 10 and so on, in plain digits."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(NullFormatter())


def shared_legend(made: Figure, *, columns: int = 2, of: Sequence[Axes] | None = None) -> None:
    """Add one legend for all axes, or for those in `of`, below them: each label once, as it first appears."""
    handles: dict[str, Any] = {}
    for axes in made.axes if of is None else of:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        made.legend(
            list(handles.values()),
            list(handles),
            loc="outside lower left",
            ncols=columns,
            fontsize=NOTE_SIZE,
            frameon=False,
        )


def picture_paths(path: Path) -> tuple[Path, Path]:
    """Return the PNG and the SVG that `path`, with either suffix or none, stands for.

    Raises:
        ConfigurationError: another suffix.
    """
    if path.suffix and path.suffix not in _SUFFIXES:
        raise ConfigurationError(f"{path}: pictures are written as .png and .svg, not as {path.suffix}")
    return path.with_name(f"{path.stem}.png"), path.with_name(f"{path.stem}.svg")


def check_picture(path: Path | None) -> None:
    """Pass if a picture can be drawn into `path`, or None is wanted: before the work whose figures it shows.

    Raises:
        ConfigurationError: matplotlib is not installed, the suffix is of another format, or `path` cannot be
            written.
    """
    if path is not None:
        require("plots", need=f"drawing {path}")
        check_writable(*picture_paths(path))


def save(made: Figure, path: Path) -> tuple[Path, Path]:
    """Write `made` as PNG and, beside it, as SVG; return both paths. Each file is complete or not there.

    Raises:
        ConfigurationError: `path` has a suffix of another format.
    """
    import matplotlib as mpl

    png, svg = picture_paths(path)
    # neither a date nor a version: the same figures make the same file
    for target, metadata in ((png, {"Software": None}), (svg, {"Date": None, "Creator": None})):
        with published(target) as draft, mpl.rc_context(_RC):
            made.savefig(draft, dpi=_DPI, metadata=metadata)
    return png, svg
