"""What the benchmark of the cloud's side counts and compares."""

import sys
import zlib
from email.message import Message
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from urllib.error import HTTPError

import numpy as np
import pytest

from pdd_core.kv.frames import END, header
from pdd_core.kv.geometry import KVGeometry, KVPart
from pdd_core.kv.pieces import packed_part, pieces_between

FOLDER = Path(__file__).parents[3] / "benchmarks"
TOKENS = 300


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import kv_cloud_checks

    yield kv_cloud_checks
    del sys.modules["kv_cloud_checks"]


def geometry(*heads: tuple[int, int]) -> KVGeometry:
    return KVGeometry(
        num_layers=2, num_kv_heads=4, head_size=32, key_type="f16", value_type="f16", key_rotation=1,
        value_rotation=1, rope={"theta": 1e4, "rotary_dim": 32},
        parts=[KVPart(layers=(0, 2), heads=share) for share in heads],
    )  # fmt: skip


def streamed(keys, values, layout: KVGeometry) -> bytes:
    out = []
    for piece in pieces_between(0, TOKENS):
        at = slice(piece.start, piece.end)
        for number, part in enumerate(layout.parts):
            share = (slice(None), at, slice(*part.heads))
            payload = packed_part(keys[share], values[share], layout)
            out.append(header(number, piece.start, piece.tokens, zlib.crc32(payload)) + payload)
    return b"".join([*out, END])


@pytest.fixture
def made():
    draw = np.random.default_rng(1)
    return [draw.normal(size=(2, TOKENS, 4, 32)).astype(np.float16).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("heads", [[(0, 4)], [(0, 2), (2, 4)]])
def test_cells_are_put_together_whoever_had_them(checks, made, heads) -> None:
    layout = geometry(*heads)
    keys, values = checks.unpacked(streamed(*made, layout), layout, TOKENS)
    assert np.array_equal(keys, made[0])
    assert np.array_equal(values, made[1])


def test_a_stream_that_is_not_whole_is_not_compared(checks, made) -> None:
    layout = geometry((0, 4))
    stream = streamed(*made, layout)
    for cut in (len(stream) - 1, len(stream) // 2):
        with pytest.raises(SystemExit, match="not whole"):
            checks.unpacked(stream[:cut], layout, TOKENS)


def test_one_head_in_the_wrong_place_is_unlike(checks, made) -> None:
    keys = made[0]
    assert checks.similarity(keys, keys) == pytest.approx(1.0)
    assert checks.similarity(keys, keys + 1e-3) > checks.LIKE
    assert checks.similarity(keys, keys[:, :, [1, 0, 2, 3]]) < 0.5


def test_ratios_are_of_pairs(checks) -> None:
    rates = {"kv": [9.9, 9.7, 10.1], "plain": [10.0, 10.0, 10.0], "off": []}
    assert checks.ratios(rates, "kv", "plain") == pytest.approx({"median": 0.99, "least": 0.97, "greatest": 1.01})
    assert checks.ratios(rates, "plain", "off") is None
    assert checks.noise([10.0, 11.0, 11.0]) == pytest.approx(0.05)
    assert checks.noise([10.0]) == 0.0


def test_prompts_are_never_the_same(checks) -> None:
    a, b, other = checks.prompts(1, 50, 1000), checks.prompts(1, 50, 1000), checks.prompts(2, 50, 1000)
    first = next(a)
    assert next(b) == first
    assert next(a) != first != next(other)
    assert len(first) == 50
    assert max(first) < 1000


def test_what_is_taken_meanwhile_is_seen(checks, monkeypatch) -> None:
    levels = iter([100, 100, 700, 300])
    seen = checks.threading.Event()

    def taken() -> int:
        level = next(levels, None)
        if level is None:
            seen.set()
            return 100
        return level

    monkeypatch.setattr(checks, "_taken", taken)
    with checks.Taken() as watched:
        assert seen.wait(60)
    assert watched.most == 600


@pytest.fixture
def script(monkeypatch, checks):
    import kv_cloud

    yield kv_cloud
    del sys.modules["kv_cloud"]


@pytest.mark.parametrize(
    ("asked", "beside", "started"),
    [
        (["cost", "shelf"], False, ["on"]),
        (["cost", "shelf"], True, ["on", "off"]),
        (["shelf"], True, ["on"]),
        (["joins"], True, ["one", "joined"]),
    ],
)
def test_only_the_servers_that_a_check_needs_are_started(script, asked, beside, started) -> None:
    options = SimpleNamespace(checks=asked, beside=beside, shelf_bytes=7, joined_flags="--tensor-parallel-size 2")
    servers = script.wanted(options)
    assert list(servers) == started
    if "joined" in servers:
        assert servers["joined"] == (servers["one"][0], ["--tensor-parallel-size", "2"])


@pytest.mark.parametrize(("code", "asked"), [(503, 3), (429, 3), (404, 1)])
def test_cells_that_are_not_there_yet_are_asked_for_again(checks, monkeypatch, code: int, asked: int) -> None:
    answers = [code, code, 200]
    seen = []

    def ask(self, path):
        seen.append(path)
        if (status := answers.pop(0)) != 200:
            raise HTTPError("u", status, "m", Message(), BytesIO(b"why"))
        return b"cells"

    monkeypatch.setattr(checks.Server, "ask", ask)
    monkeypatch.setattr(checks.time, "sleep", lambda _: None)
    found = checks.Server("http://host").cells("an-id")
    assert seen == ["/v1/pdd/handoffs/an-id/kv"] * asked
    assert found == (b"cells" if asked == 3 else "HTTP 404: why")
