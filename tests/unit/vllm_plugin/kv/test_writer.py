import threading

from pdd_core.kv.geometry import NoKV
from pdd_core.kv.pieces import pieces_between
from pdd_vllm_plugin.kv import writer as writers
from pdd_vllm_plugin.kv.writer import FAILED, CellWriter, Job

LORA = NoKV(reason="lora", message="")
WAIT = 30


class Taken:
    def __init__(self, nbytes=100, error=None):
        self.nbytes = nbytes
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.error = error

    def payloads(self):
        self.begun.set()
        assert self.go_on.wait(WAIT)
        if self.error is not None:
            raise self.error
        yield from [(piece, b"") for piece in pieces_between(0, 10)]


class Shelf:
    """Writes down what is put on it."""

    def __init__(self):
        self.found, self.changed, self.swept = {}, threading.Condition(), threading.Event()
        self.holds = False

    def note(self, handoff_id, value):
        with self.changed:
            self.found[handoff_id] = value
            self.changed.notify_all()

    def put(self, handoff_id, tokens, cell_bytes, payloads, *, since):
        self.note(handoff_id, (tokens, cell_bytes, since, len(list(payloads))))
        return True

    def put_none(self, handoff_id, none):
        self.note(handoff_id, none)

    def sweep(self):
        self.swept.set()
        return self.holds

    def wait(self, *handoff_ids):
        with self.changed:
            assert self.changed.wait_for(lambda: set(handoff_ids) <= self.found.keys(), WAIT)


def settled(writer):
    """Wait until nothing waits: counts are made behind the writing."""
    while writer.counts()["waiting"]:
        threading.Event().wait(0.001)
    return writer.counts()


def test_cells_and_reasons_are_written_in_order():
    shelf, taken = Shelf(), Taken()
    writer = CellWriter(shelf, 1)
    writer.put(Job("a", taken, 10, 7, 3.0))
    writer.put(Job("b", LORA))
    taken.go_on.set()
    shelf.wait("a", "b")
    assert list(shelf.found.items()) == [("a", (10, 7, 3.0, 1)), ("b", LORA)]
    counts = settled(writer)
    assert counts == {"kept": 1, "no_room": 0, "none": 1, "failed": 0, "waiting": 0, "waiting_bytes": 0}
    writer.close()


def test_what_waits_is_bounded_in_bytes_but_one_prompt_may_always_wait():
    writer = CellWriter(Shelf(), 1, most_bytes=150)
    assert writer.has_room(1000)
    taken = Taken(100)
    writer.put(Job("a", taken))
    assert taken.begun.wait(WAIT)
    assert writer.has_room(50)
    assert not writer.has_room(51)
    taken.go_on.set()
    assert settled(writer)["waiting_bytes"] == 0
    assert writer.has_room(51)
    writer.close()


def test_what_waits_is_bounded_in_number(monkeypatch):
    monkeypatch.setattr(writers, "MOST_WAITING", 2)
    shelf, first = Shelf(), Taken()
    writer = CellWriter(shelf, 1)
    writer.put(Job("a", first))
    assert first.begun.wait(WAIT)
    for name in "bcd":
        writer.put(Job(name, LORA))
    assert not writer.has_room(1)
    first.go_on.set()
    settled(writer)
    assert list(shelf.found) == ["a", "c", "d"]
    writer.close()


def test_what_cannot_be_packed_is_told_once_and_disturbs_nobody(caplog):
    shelf, writer = Shelf(), None
    writer = CellWriter(shelf, 1)
    for name in "ab":
        taken = Taken(error=ZeroDivisionError("secret"))
        taken.go_on.set()
        writer.put(Job(name, taken))
    writer.put(Job("c", LORA))
    settled(writer)
    assert shelf.found == {"a": FAILED, "b": FAILED, "c": LORA}
    assert len([one for one in caplog.records if "cannot be packed" in one.getMessage()]) == 1
    assert writer.counts()["failed"] == 2
    writer.close()


def test_files_are_looked_through_without_new_ones(monkeypatch):
    monkeypatch.setattr(writers, "SWEEP_S", 0.001)
    shelf = Shelf()
    shelf.holds = True
    writer = CellWriter(shelf, 1)
    writer.put(Job("a", LORA))
    settled(writer)
    for _ in range(3):
        shelf.swept.clear()
        assert shelf.swept.wait(WAIT)
    writer.close()


def test_closing_ends_the_threads():
    before = set(threading.enumerate())
    writer = CellWriter(Shelf(), 2)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    writer.close()
    for thread in mine:
        thread.join(WAIT)
        assert not thread.is_alive()
