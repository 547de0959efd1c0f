from __future__ import annotations

from types import SimpleNamespace

import anyio
import pytest
from kv_cells import frames, geometry

from pdd_cli.doctor import kv_cache as module
from pdd_cli.doctor.findings import Level
from pdd_cli.doctor.kv_cache import kv_cache, link_found
from pdd_core.errors import CloudLost, InvalidCells
from pdd_core.kv.geometry import NoKV

GEOMETRY = geometry()


class FakeCloud:
    """Makes its token, then sends the cells of the prompt, half a second between two frames."""

    def __init__(self, *, error: Exception | None = None) -> None:
        self.now, self.error = 0.0, error
        self.asked: list[tuple[int, int]] = []
        self.prompts: list[tuple[int, ...]] = []
        self.cancelled: list[str] = []

    async def stream(self, request, opt_in):
        assert opt_in.kv
        assert request.kv
        self.prompts.append(request.prompt_token_ids)
        yield "a token"

    async def cells(self, handoff_id, start, end, agreed, *, on_bytes):
        assert agreed is GEOMETRY
        self.asked.append((start, end))
        for frame in frames(end, agreed):
            self.now += 0.5
            if self.error is not None:
                raise self.error
            on_bytes(len(frame))
            yield frame

    async def cancel(self, handoff_id) -> None:
        self.cancelled.append(handoff_id)


@pytest.fixture
def found(monkeypatch):
    def run(kv, cloud=None, *, device=None, max_model_len=8192):
        cloud = cloud or FakeCloud()
        monkeypatch.setattr(module.time, "monotonic", lambda: cloud.now)
        info = SimpleNamespace(kv=kv, max_model_len=max_model_len, tokenizer=SimpleNamespace(size=300))

        async def main():
            return [finding async for finding in kv_cache(cloud, info, device)]

        return anyio.run(main)

    return run


def device(difference: str | None):
    return SimpleNamespace(kv=SimpleNamespace(differs_from=lambda _: difference))


@pytest.mark.parametrize(
    ("kv", "says"),
    [
        (None, "does not know how to hand it over"),
        (NoKV(reason="unsupported", message="the model's layers slide"), "the model's layers slide"),
    ],
)
def test_a_cloud_without_cells_is_told_and_asked_for_nothing(found, kv, says: str) -> None:
    cloud = FakeCloud()
    [finding] = found(kv, cloud, device=device(None))
    assert (finding.check, finding.level) == ("KV cache", Level.OK)
    assert says in finding.detail
    assert cloud.prompts == []


def test_what_both_sides_can_do_is_told_with_the_cells_size(found) -> None:
    cache, link = found(GEOMETRY, device=device(None))
    assert cache.level is Level.OK
    assert (
        "the device takes it (2 layers, 2 heads of 32, keys q8_0, values q4_0: 208 bytes a token)" in cache.detail
    )
    assert link.level is Level.OK


def test_without_a_device_model_nothing_is_said_of_the_device(found) -> None:
    assert "--gguf says whether the device takes it" in found(GEOMETRY)[0].detail


def test_the_difference_is_named(found) -> None:
    cache, _ = found(GEOMETRY, device=device("RoPE's base: 10000.0 in the device's file, 500000.0 in the cloud"))
    assert cache.level is Level.WARN
    assert "RoPE's base: 10000.0 in the device's file" in cache.detail
    assert "GGUF" in cache.fix


def test_the_link_is_measured_by_the_cells_behind_the_first(found) -> None:
    cloud = FakeCloud()
    _, link = found(GEOMETRY, cloud)
    assert cloud.asked == [(0, 1023)]
    assert len(cloud.cancelled) == 1
    assert max(cloud.prompts[0]) < 300
    sizes = [len(frame) for frame in frames(1023, GEOMETRY)]
    assert link.detail == link_found([(0.5 * number, size) for number, size in enumerate(sizes)], GEOMETRY)


def test_speed_and_what_it_means_are_computed() -> None:
    said = link_found([(1.0, 50_000), (1.5, 100_000), (2.0, 150_000)], GEOMETRY)
    assert "2 Mbit/s (0.3 MB in 1.00 s)" in said
    assert "2,000 tokens, 0 MB, take 1.7 s" in said


@pytest.mark.parametrize("came", [[], [(1.0, 500)], [(1.0, 500), (1.0, 500)]])
def test_too_little_tells_no_speed(came) -> None:
    assert "to tell its speed" in link_found(came, GEOMETRY)


def test_a_short_context_bounds_the_prompt(found) -> None:
    cloud = FakeCloud()
    found(GEOMETRY, cloud, max_model_len=512)
    assert cloud.asked == [(0, 509)]


@pytest.mark.parametrize("error", [CloudLost("gone"), InvalidCells("the checksum is wrong")])
def test_cells_that_do_not_come_are_a_warning_and_the_state_is_dropped(found, error) -> None:
    cloud = FakeCloud(error=error)
    _, link = found(GEOMETRY, cloud)
    assert link.level is Level.WARN
    assert str(error) in link.detail
    assert len(cloud.cancelled) == 1
