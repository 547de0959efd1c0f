from __future__ import annotations

import pytest

from pdd_cli import extras
from pdd_cli.plots.style import CYCLE, MARKERS, check_picture, figure, picture_paths, save, shared_legend
from pdd_core.errors import ConfigurationError


def drawn(path):
    made, axes = figure(1, 2, title="Speed", sharey=True)
    for one in axes:
        one.plot([1, 2], [3, 4], label="the same")
        one.set_xlabel("tokens")
    shared_legend(made)
    return save(made, path)


@pytest.mark.parametrize("name", ["a.png", "a.svg", "a"])
def test_a_picture_is_written_in_both_formats(tmp_path, name: str) -> None:
    paths = drawn(tmp_path / "new" / name)
    assert [path.name for path in paths] == ["a.png", "a.svg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "a.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in paths[1].read_bytes()


def test_the_same_figures_make_the_same_files(tmp_path) -> None:
    first, second = drawn(tmp_path / "first"), drawn(tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert b"date" not in first[1].read_bytes()


@pytest.mark.parametrize("name", ["a.pdf", "b.jpeg"])
def test_another_format_is_refused_by_name(tmp_path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"written as \.png and \.svg, not as \.(pdf|jpeg)"):
        check_picture(tmp_path / name)


def test_a_name_with_dots_keeps_them(tmp_path) -> None:
    assert picture_paths(tmp_path / "v1.2.png")[1].name == "v1.2.svg"


def test_the_missing_library_is_noticed_before_the_work(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    check_picture(None)
    with pytest.raises(ConfigurationError, match=r"matplotlib: .*pip install .*plots"):
        check_picture(tmp_path / "a.png")


def test_a_legend_for_all_axes_names_each_label_once() -> None:
    made, axes = figure(2)
    for one in axes:
        one.plot([1], [1], label="cloud")
    axes[1].plot([2], [2], label="device")
    shared_legend(made)
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["cloud", "device"]


def test_every_series_has_a_colour_and_a_marker_of_its_own() -> None:
    assert len(set(CYCLE)) == len(set(MARKERS)) == len(CYCLE) == len(MARKERS)
