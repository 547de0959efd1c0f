"""A model for evaluations that needs no engine: it copies what followed the last words before."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

N_VOCAB = 4096
END = "<|im_end|>"
SPECIAL = ("<|im_start|>", END)


@dataclass
class WordVocabulary:
    """Each word is a token, with the blank before it; ids are given out as words come."""

    words: list = field(default_factory=lambda: list(SPECIAL))
    ids: dict = field(default_factory=lambda: {word: number for number, word in enumerate(SPECIAL)})
    chat_template: str = "chatml"

    @property
    def stop_ids(self):
        return frozenset({self.ids[END]})

    def tokenize(self, text, *, special=False, add_bos=False):
        marks = "|".join(map(re.escape, SPECIAL)) if special else "(?!)"
        return [self._id(word) for word in re.findall(rf"{marks}|\n+| ?[^\s<.]+| ?[<.]| +", text)]

    def _id(self, word):
        if word not in self.ids:
            assert len(self.words) < N_VOCAB
            self.ids[word] = len(self.words)
            self.words.append(word)
        return self.ids[word]

    def render_chat(self, messages):
        turns = [f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages]
        return self.tokenize("".join(turns) + "<|im_start|>assistant\n", special=True)

    def is_special(self, token):
        return self.words[token] in SPECIAL

    def spelt(self, token):
        return self.words[token]

    def piece(self, token):
        return b"" if self.is_special(token) else self.words[token].encode()

    def close(self):
        pass


class CopyingReader:
    """In the place of an `EvalModel`. What comes next is what came after the same words before."""

    n_layer, n_ctx_train = 10, 8192

    def __init__(self, gguf=None, *, n_ctx=4096, threads=1):
        self.vocab = WordVocabulary()
        self.reads: list = []
        self.forces: list = []
        self.closed = False
        self._prompt: list = []

    def close(self):
        self.closed = True

    def full_layers(self):
        return tuple(range(self.n_layer))

    def read(self, ids, *, window, layers):
        self.reads.append(tuple(ids))
        self._prompt = list(ids)
        window = min(window, len(ids))
        asked = {self.vocab.words[token].strip() for token in ids[-40:]}
        # the words of the question, and what follows them
        weight = np.array([1.0 + 50 * (self.vocab.words[token].strip() in asked) for token in ids])
        weight[1:] += weight[:-1] / 2
        rows = np.tile(weight / weight.sum(), (2, window, 1)).astype(np.float32)
        return dict.fromkeys(range(self.n_layer) if layers is None else layers, rows)

    def answer(self, tokens, *, opening, after):
        answer = []
        while len(answer) < tokens and not (answer and answer[-1] in self.vocab.stop_ids):
            answer.append(self._next([*self._prompt, *opening, *answer]))
        return answer, [-0.01] * len(answer)

    def forced(self, ids, answer):
        self.forces.append(tuple(ids))
        rows = np.full((len(answer), N_VOCAB), -12.0, dtype=np.float32)
        for index in range(len(answer)):
            rows[index, self._next([*ids, *answer[:index]])] = -0.01
        return rows

    def _next(self, ids):
        for size in (3, 2, 1):
            last = ids[-size:]
            for start in range(len(ids) - size - 1, -1, -1):
                if ids[start : start + size] == last:
                    return ids[start + size]
        return 0


class CountingWorker:
    """Measures nothing, at a pace of its own; number 13 fails, 666 ends the process, 1000 lasts for ever.

    The task `together` lasts until two processes are at work.
    """

    def __init__(self, folder):
        self.folder = folder

    def measure(self, task, number):
        (self.folder / f"{task}-{number}-{os.getpid()}").touch()
        if number == 13:
            raise ValueError("thirteen")
        if number == 666:
            os._exit(1)
        if number == 1000:
            time.sleep(3600)
        while task == "together" and len({path.name.split("-")[2] for path in self.folder.glob("*-*")}) < 2:
            time.sleep(0.01)
        time.sleep(0.01 * (number % 3))
        return None if number == 4 else (task, number)

    def close(self):
        (self.folder / "closed").touch()


class CellReader(CopyingReader):
    """In the place of a `KVModel`. Of cells it knows how many there are; what is dropped is not copied from."""

    shape = SimpleNamespace(num_layers=2, num_kv_heads=1, head_size=64)

    def __init__(self, gguf=None, *, n_ctx=4096, threads=1):
        super().__init__(gguf, n_ctx=n_ctx, threads=threads)
        self.cell_reads: list = []
        self.handed: list = []

    def cells(self, ids):
        self.cell_reads.append(tuple(ids))
        drawn = np.random.default_rng(len(ids))
        return tuple(drawn.standard_normal((2, len(ids), 1, 64), dtype=np.float32) for _ in range(2))

    def behind(self, cells, ids, answer, *, dropped=()):
        self.handed.append((cells, tuple(ids), tuple(dropped)))
        gone = set(dropped)
        forces = list(self.forces)
        rows = self.forced([token for index, token in enumerate(ids) if index not in gone], answer)
        self.forces = forces
        return rows
