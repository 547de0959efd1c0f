from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from pdd_cli.cache import published


def test_nothing_is_left_of_a_failed_build(tmp_path) -> None:
    def build() -> None:
        with published(tmp_path / "a" / "model") as draft:
            draft.mkdir()
            (draft / "part").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build()
    assert list((tmp_path / "a").iterdir()) == []


def test_the_target_is_not_there_before_it_is_complete(tmp_path) -> None:
    target = tmp_path / "model"
    with published(target) as draft:
        draft.write_text("x")
        assert not target.exists()
    assert target.read_text() == "x"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_builders_at_once_both_find_it_complete(tmp_path, kind) -> None:
    target, together = tmp_path / "model", Barrier(2)

    def build() -> str:
        with published(target) as draft:
            if kind == "folder":
                draft.mkdir()
            (draft / "weights" if kind == "folder" else draft).write_text("complete")
            together.wait(timeout=60)
        return (target / "weights" if kind == "folder" else target).read_text()

    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(build), pool.submit(build)]]
    assert results == ["complete", "complete"]
    assert list(tmp_path.iterdir()) == [target]
