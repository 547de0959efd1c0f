"""One vLLM instance: its scheduler, step by step where something changes, in one leap where nothing does.

Between two events (an arrival that can be admitted, the end of a sequence, a full KV cache) every decoding
sequence gains one token per step. A step then takes as long as the one before it plus the same increment, so the
time of K steps is the sum of an arithmetic series, and the sequences' ends wait in a heap, keyed by a common step
counter. The cost is that of the events, not of the tokens.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_lab.simulator.kv_cache import KVCache
from pdd_lab.simulator.offered_load import Load, Served
from pdd_lab.simulator.sequence import Sequence
from pdd_lab.simulator.series import series, steps_until

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud


def simulate(load: Load, cloud: MeasuredCloud) -> Served:
    """Serve `load` on one instance with this profile; its round trips are not counted.

    Raises:
        ConfigurationError: the profile has fewer `max_num_batched_tokens` than `max_num_seqs`.
    """
    return Instance(load, cloud).run()


class Instance:
    """The scheduler's state. vLLM's `Scheduler.schedule` is the model for the order in which things happen."""

    def __init__(self, load: Load, cloud: MeasuredCloud) -> None:
        if cloud.max_num_batched_tokens < cloud.max_num_seqs:
            raise ConfigurationError(
                f"max_num_batched_tokens ({cloud.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({cloud.max_num_seqs})"
            )
        self.load, self.cloud = load, cloud
        self.kv = KVCache(cloud.kv_tokens // cloud.block_size, cloud.block_size)
        self.now = 0.0
        self.step = 0
        """Counts steps; every decoding sequence makes one token in each."""
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        """In the order of admission; those that decode, and last the one whose prefill is not done, if any."""
        self.partial: Sequence | None = None
        self.context = 0
        """Tokens in the KV cache of the sequences that decode."""
        self.ends: list[tuple[int, int, Sequence]] = []
        """A heap: step counter, a number that settles ties, sequence. Those of preempted ones are passed over."""
        self.residues = [0] * cloud.block_size
        """How many of the decoding sequences need a new block in which steps."""
        self.first = array("d", bytes(8 * len(load)))
        self.finish = array("d", bytes(8 * len(load)))
        self.cached = array("q", bytes(8 * len(load)))
        self.attended = 0.0
        """Pairs of a prefill token and one before it, or itself, in this step."""
        self.busy = 0.0
        self.prefilled = self.decoded = self.preempted = self.refused = 0
        self.most_running = self.most_batched = self.most_blocks = 0

    def run(self) -> Served:
        """Serve the whole load."""
        rows = enumerate(self.load.rows())
        most = self.kv.total * self.kv.block_size
        waiting, running = self.waiting, self.running
        seats = self.cloud.max_num_seqs
        upcoming = next(rows, None)
        while True:
            while upcoming is not None and upcoming[1][0] <= self.now:
                index, (_, prompt, output, hashes) = upcoming
                if prompt + output > most:
                    self._refuse(index)
                else:
                    waiting.append(Sequence(index, prompt, output, hashes))
                upcoming = next(rows, None)
            if not running and not waiting:
                if upcoming is None:
                    break
                self.now = max(self.now, upcoming[1][0])
                continue
            if self.partial is not None or (waiting and len(running) < seats):
                self._mixed_step()
            else:
                open_seats = len(running) < seats
                self._leap(upcoming[1][0] if open_seats and upcoming is not None else math.inf)
        return self._served()

    def _refuse(self, index: int) -> None:
        self.refused += 1
        self.first[index] = self.finish[index] = math.nan

    def _mixed_step(self) -> None:
        """Make one step in which a prompt may be prefilled; where none can be, leap to what changes that."""
        cloud, kv = self.cloud, self.kv
        decoding = len(self.running) - (self.partial is not None)
        preempted = self.preempted
        if self.residues[self.step % kv.block_size] > kv.available:
            self._decode_short_of_blocks()
            decoding = len(self.running) - (self.partial is not None)
        else:
            kv.take(self.residues[self.step % kv.block_size])
        budget = cloud.max_num_batched_tokens - decoding
        done: list[Sequence] = []
        new = 0
        room = budget
        if self.partial is not None and not self._prefill(self.partial, room):
            self._preempt(self.partial)
        elif self.partial is not None:
            room -= self._advanced(done, room)
        if self.preempted == preempted:
            while room and self.waiting and len(self.running) < cloud.max_num_seqs:
                sequence = self.waiting[0]
                if not self._admit(sequence, room):
                    break
                self.waiting.popleft()
                new += not sequence.begun
                sequence.begun = True
                self.running[sequence] = None
                self.partial = sequence
                room -= self._advanced(done, room)
        prefilled = budget - room
        if not prefilled and not decoding:
            if self.preempted == preempted:
                raise AssertionError("an idle instance cannot place a request that fits it")  # pragma: no cover
            return
        self._note(decoding, prefilled)
        self._pass(
            1,
            decoding,
            cloud.per_prefill_token_s * prefilled
            + cloud.per_request_s * new
            + cloud.per_attended_token_s * self.attended,
        )
        self.attended = 0.0
        for sequence in done:
            self._begin_decode(sequence)
        self._end_those_done()
        stands = not prefilled and self.preempted == preempted and len(self.running) == decoding
        if stands and not self._finds_too_much():
            self._leap(math.inf)  # the first in line waits for blocks, and only an end frees some

    def _finds_too_much(self) -> bool:
        """Whether the first in line finds more of its prefix than it can use: it may fit once that is lost."""
        if not self.waiting:
            return False
        sequence = self.waiting[0]
        _, found = self.kv.found(sequence.hashes)
        return found > (sequence.todo - 1) // self.kv.block_size

    def _advanced(self, done: list[Sequence], room: int) -> int:
        """Count the partial sequence's chunk as computed, and return its tokens."""
        sequence = self.partial
        assert sequence is not None  # noqa: S101 - for mypy
        chunk = min(room, sequence.todo - sequence.computed)
        self.attended += chunk * (sequence.computed + (chunk + 1) / 2)
        sequence.computed += chunk
        self.prefilled += chunk
        if sequence.hashes:
            self._publish(sequence)
        if sequence.computed == sequence.todo:
            done.append(sequence)
            self.partial = None
        return chunk

    def _admit(self, sequence: Sequence, room: int) -> bool:
        """Give a waiting sequence the blocks of its first chunk, cached ones first.

        False if there are too few, be it for its whole prompt: vLLM's `scheduler_reserve_full_isl`.
        """
        kv, hashes, size = self.kv, sequence.hashes, self.kv.block_size
        whole = -(-sequence.todo // size)
        if hashes:
            count, cached = kv.found(hashes)
            found = hashes[:count]
            # as in vLLM the last token is always computed: it makes the first output token
            cached = min(cached, (sequence.todo - 1) // size)
            tokens = cached * size
            blocks = -(-min(sequence.todo, tokens + room) // size) - cached
            if kv.idle_blocks(found) + whole - cached > kv.available:
                return False
            kv.hold(found)
            sequence.shared = cached
            sequence.held = list(found)
            sequence.published = len(found)
            sequence.computed = tokens
            if not sequence.begun:
                self.cached[sequence.index] = tokens
            kv.take(blocks)
            return True
        return whole <= kv.available and self._prefill(sequence, room)

    def _prefill(self, sequence: Sequence, room: int) -> bool:
        """Give a sequence the blocks of its next chunk; False where there are too few."""
        size = self.kv.block_size
        computed = sequence.computed
        blocks = -(-min(sequence.todo, computed + room) // size) - -(-computed // size)
        if blocks > self.kv.available:
            return False
        self.kv.take(blocks)
        return True

    def _publish(self, sequence: Sequence) -> None:
        """Make the hash blocks findable that are computed now."""
        block, kv = self.load.block_tokens, self.kv
        while sequence.published < len(sequence.hashes):
            begin = sequence.published * block
            end = min(begin + block, sequence.prompt)
            blocks = end // kv.block_size - begin // kv.block_size
            if end > sequence.computed or not blocks:
                return
            one = sequence.hashes[sequence.published]
            if kv.publish(one, blocks):
                sequence.held.append(one)
                sequence.shared += blocks
            sequence.published += 1

    def _begin_decode(self, sequence: Sequence) -> None:
        """Let a sequence whose prefill is done, and which thereby made a token, go on."""
        self.decoded += 1
        made = sequence.todo - sequence.prompt + 1
        if made == 1:
            self.first[sequence.index] = self.now
        sequence.since = self.step
        sequence.ends = self.step + sequence.output - made
        sequence.residue = (self.step - sequence.todo) % self.kv.block_size
        self.residues[sequence.residue] += 1
        self.context += sequence.todo
        heappush(self.ends, (sequence.ends, self.decoded, sequence))

    def _end_those_done(self) -> None:
        ends, step, running = self.ends, self.step, self.running
        while ends and ends[0][0] <= step:
            at, _, sequence = heappop(ends)
            if sequence.ends == at and sequence in running:
                self.finish[sequence.index] = self.now
                self._leave(sequence)
                del running[sequence]

    def _leave(self, sequence: Sequence) -> None:
        """Take back the blocks of a running sequence."""
        tokens = sequence.tokens(self.step)
        if sequence.since >= 0:
            self.context -= tokens
            self.residues[sequence.residue] -= 1
        else:
            self.partial = None
        self.kv.release(sequence.held, -(-tokens // self.kv.block_size) - sequence.shared)
        sequence.held = []
        sequence.shared = 0

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back to the front of the line; all it had is computed again."""
        made = sequence.made(self.step)
        self._leave(sequence)
        del self.running[sequence]
        sequence.todo = sequence.prompt + made
        sequence.computed = sequence.published = 0
        sequence.since = sequence.ends = -1
        self.waiting.appendleft(sequence)
        self.preempted += 1

    def _decode_short_of_blocks(self) -> None:
        """Hand out the step's blocks one by one, in the order of admission, and preempt from the end."""
        kv, residue = self.kv, self.step % self.kv.block_size
        served: list[Sequence] = []
        for sequence in list(self.running):
            if sequence not in self.running:
                break  # preempted, and so are all behind it
            if sequence.since < 0 or sequence.residue != residue:
                continue
            while sequence in self.running and not kv.available:
                self._preempt(next(reversed(self.running)))
            if sequence in self.running:
                kv.take(1)
                served.append(sequence)

    def _leap(self, until: float) -> None:
        """Decode until a sequence ends, the time `until` has come, or blocks run out."""
        ends, running = self.ends, self.running
        while ends[0][2].ends != ends[0][0] or ends[0][2] not in running:
            heappop(ends)
        decoding, kv = len(running), self.kv
        steps = ends[0][0] - self.step
        if until < math.inf:
            first, slope = self._step_seconds(decoding)
            if series(first, slope, steps) > until - self.now:  # else an end comes first, however far `until` is
                steps = min(steps, steps_until(until - self.now, first, slope))
        size = kv.block_size
        if decoding * (steps // size + 1) > kv.available:
            steps = max(1, min(steps, size * (kv.available // decoding)))
        if steps == 1 and self.residues[self.step % size] > kv.available:
            self._decode_short_of_blocks()
            decoding = len(running)
            if not decoding:
                return
        else:
            cycles, rest = divmod(steps, size)
            at = self.step % size
            turn = self.residues[at:] + self.residues[:at]
            kv.take(cycles * decoding + sum(turn[:rest]))
        self._note(decoding, 0)
        self._pass(steps, decoding, 0.0)
        self._end_those_done()

    def _step_seconds(self, decoding: int) -> tuple[float, float]:
        """Return how long a step takes without prefill, and how much longer each following one."""
        cloud = self.cloud
        slope = cloud.per_context_token_s * decoding
        return (
            cloud.base_s + cloud.per_sequence_s * decoding + cloud.per_context_token_s * self.context + slope,
            slope,
        )

    def _pass(self, steps: int, decoding: int, extra_s: float) -> None:
        """Let so many steps pass."""
        first, slope = self._step_seconds(decoding)
        seconds = series(first, slope, steps) + extra_s
        self.now += seconds
        self.busy += seconds
        self.step += steps
        self.context += steps * decoding
        self.decoded += steps * decoding

    def _note(self, decoding: int, prefilled: int) -> None:
        if len(self.running) > self.most_running:
            self.most_running = len(self.running)
        if decoding + prefilled > self.most_batched:
            self.most_batched = decoding + prefilled
        if self.kv.in_use > self.most_blocks:
            self.most_blocks = self.kv.in_use

    def _served(self) -> Served:
        return Served(
            first_token_s=np.frombuffer(self.first, dtype=np.float64),
            finish_s=np.frombuffer(self.finish, dtype=np.float64),
            cached_tokens=np.frombuffer(self.cached, dtype=np.int64),
            end_s=self.now,
            busy_s=self.busy,
            steps=self.step,
            prefill_tokens=self.prefilled,
            decode_tokens=self.decoded,
            preemptions=self.preempted,
            refused=self.refused,
            most_running=self.most_running,
            most_batched_tokens=self.most_batched,
            most_blocks=self.most_blocks,
        )
