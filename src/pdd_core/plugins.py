"""Loads policy plugins and asks them.

A third party's hook that fails never breaks serving: one warning with its name, then the next one decides, at last
the built-in. With `strict` it raises instead.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from pdd_core.errors import PolicyError, named
from pdd_core.hookspecs import PROJECT, PDDSpecs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

ENTRY_POINT_GROUP = "pdd"
logger = logging.getLogger(__name__)

_LONGEST_SHOWN = 80
"""Characters of a refused result in a warning: it may be the indices of a long prompt."""


class Policies:
    """The registered policies of one process."""

    def __init__(
        self,
        builtins: Mapping[str, object],
        *,
        allow: Iterable[str] | None = None,
        strict: bool = False,
    ) -> None:
        """Register `builtins` by name, then every entry point of group ``pdd``.

        Args:
            builtins: name -> plugin, in the order to ask them. With ``trylast`` they come after all third parties.
            allow: entry points to load; None loads all.
            strict: raise where a third party fails, at load or in a request.

        Raises:
            PolicyError: `strict`, and a plugin cannot be loaded or has a hook that does not exist.
        """
        self._strict = strict
        self._warned: set[tuple[str, str]] = set()
        self._callers: dict[str, list[tuple[str, Callable[..., Any]]]] = {}
        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(PDDSpecs)
        self._builtins = frozenset(builtins)
        for name, plugin in builtins.items():
            self.manager.register(plugin, name)
        allowed = None if allow is None else frozenset(allow)
        for entry_point in entry_points(group=ENTRY_POINT_GROUP):
            if allowed is None or entry_point.name in allowed:
                self._load(entry_point.name, entry_point.load)

    def _load(self, name: str, load: Callable[[], object]) -> None:
        try:
            plugin = load()
            self.manager.register(plugin, name)
            try:
                self.manager.check_pending()
            except pluggy.PluginValidationError:
                self.manager.unregister(plugin)
                raise
        except Exception as error:
            # One broken third party must not take the host down (simonw/llm#1280).
            if self._strict:
                raise PolicyError(f"policy plugin {name!r} cannot be loaded: {error}") from error
            logger.warning("policy plugin %r is left out: %s: %s", name, type(error).__name__, error)

    def first_result(self, hook: str, accept: Callable[[Any], bool], /, **arguments: object) -> tuple[Any, str]:
        """Ask the implementations of `hook` in pluggy's order until one gives a result that `accept` takes.

        Returns the result and the name of the plugin that gave it.

        Raises:
            PolicyError: no plugin gave a result, or `strict` and one failed.
        """
        for answer in self.answers(hook, accept, **arguments):
            return answer
        raise PolicyError(f"no policy answered {hook}")

    def answers(
        self, hook: str, accept: Callable[[Any], bool], /, **arguments: object
    ) -> Iterator[tuple[Any, str]]:
        """Ask the implementations of `hook` in pluggy's order, one for each answer that is taken.

        Yields results that `accept` takes, each with the name of its plugin.

        Raises:
            PolicyError: `strict` and one failed.
        """
        for name, caller in self._asked(hook):
            try:
                result = caller(**arguments)
            except Exception as error:  # noqa: BLE001 - third-party code
                self._failed(name, hook, named(error), error)
                continue
            if result is None:
                continue
            if accept(result):
                yield result, name
            else:
                self._failed(name, hook, f"returned {_shortened(result)}, which is not usable", None)

    def third_parties(self, hook: str) -> list[str]:
        """Names of the plugins with `hook` that did not come with the host, in the order to ask them."""
        return [name for name, _ in self._asked(hook) if not self.is_built_in(name)]

    def is_built_in(self, name: str) -> bool:
        """Whether the plugin of this name came with the host."""
        return name in self._builtins

    def describe(self) -> str:
        """Names of the registered plugins, for a start-up line."""
        return ", ".join(name for name, _ in self.manager.list_name_plugin())

    def _asked(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        if hook not in self._callers:
            self._callers[hook] = self._in_order(hook)
        return self._callers[hook]

    def _in_order(self, hook: str) -> list[tuple[str, Callable[..., Any]]]:
        """One caller per plugin, so that a failure has a name and the others still get asked."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        plugins = [implementation.plugin for implementation in reversed(implementations)]
        return [
            (
                self.manager.get_name(plugin) or repr(plugin),
                self.manager.subset_hook_caller(hook, [other for other in plugins if other is not plugin]),
            )
            for plugin in plugins
        ]

    def _failed(self, name: str, hook: str, problem: str, cause: Exception | None) -> None:
        if self._strict:
            raise PolicyError(f"policy plugin {name!r}, {hook}: {problem}") from cause
        if (name, hook) not in self._warned:
            self._warned.add((name, hook))
            logger.warning("policy plugin %r failed in %s and is passed over: %s", name, hook, problem)


def _shortened(result: object) -> str:
    text = repr(result)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
