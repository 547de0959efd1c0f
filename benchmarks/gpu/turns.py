"""Two engines on one GPU; one works at a time."""

import json
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from engine_process import EngineFailed, EngineProcess


@dataclass
class Turns:
    """Plain vLLM and vLLM with the plugin, by name: ``plain`` and ``plugin``."""

    engines: dict[str, EngineProcess]
    way: str
    """``sleep``: the other one is off the GPU; ``together``: it stays there, idle; ``sequential``: it has ended or
    not begun."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the engines said of themselves, and what the turns cost; JSON-ready."""
    awake: set[str] = field(default_factory=set)
    at_work: str = "plain"

    def start(self) -> None:
        """Load the engines. Where taking turns does not work, fall back to one after the other.

        Raises:
            EngineFailed: an engine cannot be loaded even with the GPU to itself.
        """
        try:
            self._load("plain")
            if self.way == "sleep":
                self._sleep("plain")
            if self.way != "sequential":
                self._load("plugin")
                self.to("plain")  # one whole turn, before anything depends on it
        except EngineFailed as error:
            if self.way == "sequential":
                raise
            print(f"the engines cannot take turns ({error}); one after the other instead", flush=True)
            self.facts["no_turns"] = str(error)
            self.way = "sequential"
            self._renew("plugin")
            if "plain" not in self.awake:
                self._wake_or_restart_plain()
            self.at_work = "plain"

    def to(self, name: str) -> EngineProcess:
        """Give `name` the GPU.

        Raises:
            EngineFailed: it cannot be loaded, or cannot wake.
        """
        self.at_work = name
        if name not in self.awake:
            for other in sorted(self.awake):
                if self.way == "sleep":
                    self._sleep(other)
                else:
                    self.engines[other].stop()
                    self.awake.discard(other)
            if self.way == "sleep":
                self.facts.setdefault("wake_s", []).append(self.engines[name].wake())
                self.awake.add(name)
            else:
                self._load(name)
        return self.engines[name]

    def stop(self) -> None:
        """End both."""
        for engine in self.engines.values():
            with suppress(Exception):
                engine.stop()

    def _load(self, name: str) -> None:
        engine = self.engines[name]
        if name == "plugin":  # the same KV cache, whatever else is on the GPU by now
            engine.settings = replace(engine.settings, num_blocks=self.facts["plain"]["num_blocks"])
        self.facts[name] = engine.load()
        self.awake.add(name)
        self.at_work = name
        print(json.dumps({name: self.facts[name]}), flush=True)

    def _sleep(self, name: str) -> None:
        self.awake.discard(name)
        self.facts.setdefault("sleep_s", []).append(self.engines[name].sleep())

    def _renew(self, name: str) -> None:
        self.awake.discard(name)
        self.engines[name].stop()
        self.engines[name] = EngineProcess(name, replace(self.engines[name].settings, sleeps=False))

    def _wake_or_restart_plain(self) -> None:
        try:
            if "plain" not in self.facts:
                raise EngineFailed("it has never been awake")
            self.engines["plain"].wake()
            self.awake.add("plain")
        except EngineFailed:
            self._renew("plain")
            self._load("plain")
