"""The blocks of an instance's KV cache: who holds how many, and which prefixes can be found in it."""

from __future__ import annotations

from collections import OrderedDict


class KVCache:
    """Counts blocks; a prefix is a chain of hashes, each standing for some full blocks.

    As in vLLM, a block that nobody holds stays findable until its place is needed, the least recently held first.
    Blocks of answers and of prompts without hashes are forgotten when they are freed.
    """

    __slots__ = ("_held", "_idle", "_idle_blocks", "block_size", "free", "total")

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self.free = total
        """Blocks with nothing in them."""
        self._held: dict[int, list[int]] = {}
        """Hash -> how many sequences hold it, and its blocks."""
        self._idle: OrderedDict[int, int] = OrderedDict()
        """Hash -> its blocks, of those that nobody holds, the least recently held first."""
        self._idle_blocks = 0

    @property
    def available(self) -> int:
        """Blocks that a sequence could get."""
        return self.free + self._idle_blocks

    @property
    def in_use(self) -> int:
        """Blocks that sequences hold."""
        return self.total - self.free - self._idle_blocks

    def take(self, blocks: int) -> None:
        """Give away `blocks`; there must be so many."""
        while blocks > self.free:
            _, forgotten = self._idle.popitem(last=False)
            self._idle_blocks -= forgotten
            self.free += forgotten
        self.free -= blocks

    def found(self, hashes: tuple[int, ...]) -> tuple[int, int]:
        """Return how many of a prompt's hashes are here, from its beginning on, and their blocks."""
        held, idle, blocks = self._held, self._idle, 0
        for count, one in enumerate(hashes):
            if one in held:
                blocks += held[one][1]
            elif one in idle:
                blocks += idle[one]
            else:
                return count, blocks
        return len(hashes), blocks

    def idle_blocks(self, hashes: tuple[int, ...]) -> int:
        """Return how many blocks `hold` would take out of those that could be given away."""
        return sum(self._idle.get(one, 0) for one in hashes)

    def hold(self, hashes: tuple[int, ...]) -> None:
        """Let one more sequence hold blocks that are here."""
        for one in hashes:
            if one in self._idle:
                size = self._idle.pop(one)
                self._idle_blocks -= size
                self._held[one] = [1, size]
            else:
                self._held[one][0] += 1

    def publish(self, one: int, blocks: int) -> bool:
        """Make `blocks` of a sequence's own findable; False where they are already here under this hash."""
        if one in self._held or one in self._idle:
            return False
        self._held[one] = [1, blocks]
        return True

    def release(self, hashes: list[int], own: int) -> None:
        """Take back what a sequence held: hashes, and `own` blocks without one."""
        self.free += own
        for one in reversed(hashes):  # a chain's end is forgotten before its beginning
            entry = self._held[one]
            entry[0] -= 1
            if not entry[0]:
                del self._held[one]
                self._idle[one] = entry[1]
                self._idle_blocks += entry[1]
