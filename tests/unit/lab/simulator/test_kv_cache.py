from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pdd_lab.simulator.kv_cache import KVCache


def test_what_nobody_holds_is_found_until_its_place_is_needed():
    cache = KVCache(10, 16)
    cache.take(6)
    assert cache.publish(1, 2)
    assert cache.publish(2, 2)
    assert not cache.publish(1, 2), "it is there"
    cache.release([1, 2], own=2)
    assert cache.found((1, 2, 3)) == (2, 4)
    assert (cache.available, cache.in_use) == (10, 0)
    cache.take(7)
    assert cache.found((1, 2)) == (1, 2), "the end of a chain goes first"
    cache.take(3)
    assert cache.found((1,)) == (0, 0)


class Cache(RuleBasedStateMachine):
    """Sequences come and go; no block is lost or given twice."""

    def __init__(self):
        super().__init__()
        self.cache = KVCache(30, 4)
        self.held = []

    @rule(blocks=st.integers(1, 8), chain=st.lists(st.integers(1, 5), unique=True, max_size=3))
    def admit(self, blocks, chain):
        count, _ = self.cache.found(tuple(chain))
        found = tuple(chain[:count])
        if self.cache.idle_blocks(found) + blocks > self.cache.available:
            return
        self.cache.hold(found)
        self.cache.take(blocks)
        own, hashes = blocks, list(found)
        for one in chain[count:]:
            if own and self.cache.publish(one, 1):
                hashes.append(one)
                own -= 1
        self.held.append((hashes, own))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data):
        hashes, own = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.cache.release(hashes, own)

    @invariant()
    def counts(self):
        shared = {one for hashes, _ in self.held for one in hashes}
        assert self.cache.in_use == sum(own for _, own in self.held) + len(shared)
        assert 0 <= self.cache.free <= self.cache.available <= self.cache.total


TestCache = Cache.TestCase
TestCache.settings = examples(60)
