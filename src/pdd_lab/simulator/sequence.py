"""One request inside an instance."""

from __future__ import annotations


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

    def made(self, step: int) -> int:
        """Return its output tokens, before the step with this counter."""
        return self.todo - self.prompt if self.since < 0 else self.output - (self.ends - step)
