import fcntl
import os
import subprocess
import sys

import pytest

from pdd_core.kv.geometry import KVGeometry, NoKV
from pdd_core.kv.pieces import pieces_between
from pdd_vllm_plugin.kv import shelf as shelves
from pdd_vllm_plugin.kv.shelf import MARK_S, NO_ROOM, Shelf
from pdd_vllm_plugin.kv.shelf_file import CELLS, GONE, NONE, ShelfFile, file_bytes

GEOMETRY = KVGeometry(
    num_layers=1, num_kv_heads=1, head_size=32, key_type="f16", value_type="f16", key_rotation=1, value_rotation=1,
    rope={"theta": 1e4, "rotary_dim": 32}, parts=[{"layers": (0, 1), "heads": (0, 1)}],
)  # fmt: skip
CELL = GEOMETRY.cell_bytes
TOKENS = 100
ONE = file_bytes(TOKENS, CELL)
"""A prompt's file; several pages long."""


class Clock:
    now = 1e9

    def __call__(self):
        return self.now


class World:
    """A shelf with room for three prompts, whose files have the clock's times."""

    def __init__(self, base, **options):
        self.clock = Clock()
        self.shelf = Shelf(3 * ONE + 100, 60.0, base=base, clock=self.clock, **options)

    def file(self, name):
        return ShelfFile(self.shelf.folder, name * 32)

    def put(self, name, tokens=TOKENS, since=0.0):
        payloads = [(piece, bytes(piece.tokens * CELL)) for piece in pieces_between(0, tokens)]
        put = self.shelf.put(name * 32, tokens, CELL, payloads, since=since)
        self.clock.now += 1
        for suffix in (CELLS, NONE):
            if self.file(name).path(suffix).exists() and put:
                os.utime(self.file(name).path(suffix), (self.clock.now, self.clock.now))
        return put

    def read(self, name):
        return self.file(name).open(GEOMETRY, 0)

    @property
    def names(self):
        return "".join(name for name in "abcdefgh" if self.file(name).path(CELLS).exists())


@pytest.fixture
def world(base):
    made = World(base)
    yield made
    made.shelf.close()


def test_the_oldest_gives_way(world):
    for name in "abcd":
        assert world.put(name)
    assert world.names == "bcd"
    assert world.shelf.counts() == {"stored": 3, "stored_bytes": 3 * ONE, "evicted": 1}


def test_what_is_read_stays_and_the_next_oldest_goes(world):
    world.put("a")
    with world.read("a"):
        for name in "bcd":
            assert world.put(name)
        assert world.names == "acd"
    world.put("e")
    assert world.names == "cde"


def test_if_all_is_read_there_is_no_room_and_a_reason(world):
    for name in "abc":
        world.put(name)
    opened = [world.read(name) for name in "abc"]
    assert not world.put("d")
    for one in opened:
        one.close()
    assert world.names == "abc"
    assert world.put("d")
    assert world.read("d").tokens == TOKENS


def test_a_reason_takes_room_of_cells_if_need_be(base):
    world = World(base)
    for name in "abc":
        world.put(name)
    world.shelf.put_none("d" * 32, NO_ROOM)
    assert world.read("d") == NO_ROOM
    assert world.names == "bc"


def test_a_prompt_that_is_larger_than_the_shelf_is_refused(world):
    assert world.shelf.fits(3 * TOKENS, CELL)
    assert not world.shelf.fits(4 * TOKENS, CELL)


def test_what_is_too_old_goes_when_nobody_reads_it(world):
    world.put("a")
    world.put("b")
    world.clock.now += 59.5
    assert world.shelf.sweep()
    assert world.names == "b"
    world.clock.now += 60
    with world.read("b"):
        assert world.shelf.sweep()
    assert not world.shelf.sweep()
    assert world.names == ""


def test_what_was_dropped_goes_when_nobody_reads_it(world):
    world.put("a")
    with world.read("a"):
        world.file("a").drop()
        assert world.shelf.sweep()
    assert not world.shelf.sweep()
    assert not world.file("a").path(GONE).exists()


def test_cells_of_a_handoff_that_was_dropped_before_are_dropped(world):
    file = world.file("a")
    file.drop()
    os.utime(file.path(GONE), (world.clock.now, world.clock.now))
    world.put("a", since=world.clock.now - 1)
    assert world.read("a") is None
    assert not world.shelf.sweep()


def test_a_handoff_id_may_be_used_again(world):
    file = world.file("a")
    file.drop()
    os.utime(file.path(GONE), (world.clock.now, world.clock.now))
    assert world.shelf.sweep()  # for the mark is young
    world.put("a", since=world.clock.now + 1)
    assert world.read("a").tokens == TOKENS
    world.clock.now += MARK_S + 1
    world.shelf.sweep()
    assert not file.path(GONE).exists()


def test_a_full_file_system_is_no_room(world):
    def full():
        raise OSError(28, "No space left on device")
        yield

    assert not world.shelf.put("a" * 32, TOKENS, CELL, full())
    assert world.read("a") == NO_ROOM
    assert world.shelf.counts()["stored"] == 0


def test_what_is_being_written_counts(world):
    def nested():
        for name in "bcd":
            world.put(name)
        yield from [(piece, bytes(piece.tokens * CELL)) for piece in pieces_between(0, TOKENS)]

    assert world.shelf.put("a" * 32, TOKENS, CELL, nested())
    assert world.names == "acd"


def test_a_reason_is_kept_as_long_as_cells(world):
    world.shelf.put_none("a" * 32, NoKV(reason="lora", message=""))
    path = world.file("a").path(NONE)
    os.utime(path, (world.clock.now, world.clock.now))
    assert world.shelf.sweep()
    world.clock.now += 61
    assert not world.shelf.sweep()


def test_the_folder_is_this_users_alone_and_goes_with_the_shelf(world):
    assert world.shelf.folder.stat().st_mode & 0o777 == 0o700
    assert (world.shelf.folder / "nonce").read_text() == world.shelf.nonce
    world.put("a")
    world.shelf.close()
    assert not world.shelf.folder.exists()


LEAVES = """
import os, pathlib, sys
from pdd_vllm_plugin.kv.shelf import Shelf
shelf = Shelf(1000, 60.0, base=pathlib.Path(sys.argv[1]))
print(shelf.folder, flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("end", "left"), [("ended", False), ("killed", True)])
def test_a_process_that_is_killed_leaves_what_the_next_removes(base, world, end, left):
    done = subprocess.run([sys.executable, "-c", LEAVES, str(base), end], capture_output=True, text=True)
    folder = world.shelf.folder.parent / done.stdout.strip().rpartition("/")[2]
    assert folder.exists() == left, done.stderr
    other = World(base)
    assert not folder.exists()
    assert world.shelf.folder.exists()  # which is in use
    other.shelf.close()


def test_where_memory_has_no_room_the_folder_is_among_temporary_files(monkeypatch, base):
    monkeypatch.setattr(shelves.tempfile, "gettempdir", lambda: str(base))
    shelf = Shelf(1 << 60, 60.0)
    assert shelf.folder.parent == base
    shelf.close()


def test_a_folder_in_use_is_locked(world):
    fd = os.open(world.shelf.folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
