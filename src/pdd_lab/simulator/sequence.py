"""One request inside an instance, and the blocks that it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_lab.simulator.kv_cache import KVCache


class Sequence:
    """What the scheduler knows of one request. Mutable: it lives for as long as its request does."""

    __slots__ = (
        "begun",
        "computed",
        "ends",
        "hashes",
        "held",
        "index",
        "output",
        "prompt",
        "published",
        "residue",
        "shared",
        "since",
        "todo",
    )

    def __init__(self, index: int, prompt: int, output: int, hashes: tuple[int, ...]) -> None:
        self.index = index
        self.prompt = prompt
        self.output = output
        self.hashes = hashes
        self.todo = prompt
        """Tokens that its prefill has to compute: the prompt, and after a preemption what was made."""
        self.computed = 0
        """Of them, in the KV cache."""
        self.since = -1
        """The instance's step counter when its prefill was done; -1 before."""
        self.ends = -1
        """The step counter when its last token will have been made."""
        self.residue = 0
        """It needs a new block in the steps whose counter has this residue modulo the block size."""
        self.held: list[int] = []
        """Hashes whose blocks it holds together with others."""
        self.shared = 0
        """How many blocks those are."""
        self.published = 0
        """How many of its hashes can be found by others, or were here before."""
        self.begun = False
        """Whether it was admitted before."""

    def tokens(self, step: int) -> int:
        """Return its tokens in the KV cache, before the step with this counter."""
        return self.computed if self.since < 0 else self.todo + step - self.since

    def admit(self, kv: KVCache, room: int) -> bool:
        """Take the blocks of its first chunk of at most `room` tokens, cached ones first.

        False if there are too few, be it for its whole prompt: vLLM's `scheduler_reserve_full_isl`.
        """
        hashes, size = self.hashes, kv.block_size
        whole = -(-self.todo // size)
        if not hashes:
            return whole <= kv.available and self.extend(kv, room)
        count, cached = kv.found(hashes)
        found = hashes[:count]
        # as in vLLM the last token is always computed: it makes the first output token
        cached = min(cached, (self.todo - 1) // size)
        tokens = cached * size
        if kv.idle_blocks(found) + whole - cached > kv.available:
            return False
        kv.hold(found)
        self.shared = cached
        self.held = list(found)
        self.published = len(found)
        self.computed = tokens
        kv.take(-(-min(self.todo, tokens + room) // size) - cached)
        return True

    def extend(self, kv: KVCache, room: int) -> bool:
        """Take the blocks of its next chunk of at most `room` tokens; False where there are too few."""
        size, computed = kv.block_size, self.computed
        blocks = -(-min(self.todo, computed + room) // size) - -(-computed // size)
        if blocks > kv.available:
            return False
        kv.take(blocks)
        return True

    def publish(self, kv: KVCache, block_tokens: int) -> None:
        """Make those of its hash blocks findable that are computed by now."""
        while self.published < len(self.hashes):
            begin = self.published * block_tokens
            end = min(begin + block_tokens, self.prompt)
            blocks = end // kv.block_size - begin // kv.block_size
            if end > self.computed or not blocks:
                return
            one = self.hashes[self.published]
            if kv.publish(one, blocks):
                self.held.append(one)
                self.shared += blocks
            self.published += 1

    def release(self, kv: KVCache, tokens: int) -> None:
        """Give back all blocks of its `tokens`."""
        kv.release(self.held, -(-tokens // kv.block_size) - self.shared)
        self.held = []
        self.shared = 0

    def restart(self, step: int) -> None:
        """Begin again, preempted before the step with this counter: what it has made is prefilled as well."""
        if self.since >= 0:
            self.todo = self.prompt + self.output - (self.ends - step)
        self.computed = self.published = 0
        self.since = self.ends = -1
