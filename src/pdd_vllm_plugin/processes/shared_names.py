"""Which API process has which handoff, as symbolic links in a shared folder. Making a link is the claim.

``symlink`` either makes a link or fails because there is one, so that the file system decides who has an id. A
link is whole or not there, whatever becomes of the process that makes it. So nobody waits for anybody: neither a
stopped process nor one that was killed holds a lock that another one needs.

=====================  ====================================================================================
``KEY.run``            a running request has the id, or its deletion is remembered; one process owns the link
``KEY.ended.RANK``     that process has the state of a request that has ended
``KEY.named.RANK``     that process has a state whose completion has this id
``KEY.deleted.RANK``   that process had one, which was deleted
=====================  ====================================================================================

KEY is a hash: an id is as good as a key to its state. A link's target is its owner's rank and when it was made.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from hashlib import blake2b
from typing import TYPE_CHECKING

from pdd_vllm_plugin.handoff_names import HandoffNames, Totals

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_vllm_plugin.processes.shared_counts import SharedCounts

logger = logging.getLogger("vllm.pdd")


class SharedNames(HandoffNames):
    """The names in the folder open as `folder_fd`. Where it fails, this process goes on with what it knows."""

    def __init__(self, folder_fd: int, counts: SharedCounts) -> None:
        self._folder = folder_fd
        self._counts = counts
        self._lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd)
        self._reported = False
        self.room_wanted: Callable[[int], object] = lambda _rank: None
        """Called with the rank of the process that is asked for room."""

    def is_taken(self, handoff_id: str) -> bool:
        """Look whose the link is; one that a dead process left counts for nothing."""
        target = self._target(f"{_key(handoff_id)}.run")
        return target is not None and _rank(target) != self._counts.rank and not self._is_left_over(target)

    def claim(self, handoff_id: str) -> bool:
        """Make the link, in the place of one that a dead process left."""
        link = f"{_key(handoff_id)}.run"
        for _ in range(2):
            if self._make(link):
                return True
            target = self._target(link)
            if target is not None:
                if _rank(target) == self._counts.rank:
                    return True
                if not self._is_left_over(target) or not self._remove_left_over(link, target):
                    return False
        return False

    def ended(self, handoff_id: str) -> None:
        """Move the link, which makes its place free."""
        key = _key(handoff_id)
        try:
            os.rename(
                f"{key}.run", f"{key}.ended.{self._counts.rank}",
                src_dir_fd=self._folder, dst_dir_fd=self._folder,
            )  # fmt: skip
        except OSError as error:
            self._report(error)

    def bury(self, handoff_id: str) -> bool:
        """Take the link of running requests, then remove that of the ended one: the id is taken at each moment."""
        held = self.claim(handoff_id)
        self._remove(f"{_key(handoff_id)}.ended.{self._counts.rank}")
        return held

    def free(self, handoff_id: str, *, ended: bool) -> None:
        """Remove the link."""
        self._remove(f"{_key(handoff_id)}.{f'ended.{self._counts.rank}' if ended else 'run'}")

    def name_completion(self, completion_id: str, *, deleted: bool = False) -> None:
        """Make a link for this process."""
        self._make(self._of_completion(completion_id, deleted=deleted))

    def unname_completion(self, completion_id: str, *, deleted: bool = False) -> None:
        """Remove it."""
        self._remove(self._of_completion(completion_id, deleted=deleted))

    def tell(self, own: Totals) -> None:
        """Write this process's row."""
        self._counts.tell(own)

    def others(self) -> Totals:
        """Sum up the others' rows."""
        return self._counts.others()

    def ask_for_room(self) -> None:
        """Ask the process that has most."""
        rank = self._counts.fullest()
        if rank is not None:
            self.room_wanted(rank)

    def owners(self, name: str, *, completions: bool) -> list[int]:
        """Return the ranks of the processes that have this handoff id, or, if `completions`, this completion's.

        Of several that had a handoff id one after the other, it is the last. Of a completion's id, it is all that
        have a state, or else all that deleted one.
        """
        key = _key(name)
        running = self._target(f"{key}.run")  # first: from here it moves to the next place, at once
        if running is not None:
            return [_rank(running)]
        if ended := self._targets(key, "ended"):
            return [_rank(max(ended, key=_made_at))]
        if not completions:
            return []
        return [_rank(target) for target in self._targets(key, "named") or self._targets(key, "deleted")]

    def close(self) -> None:
        """Let go of the folder. What ends after that in this process tells nobody."""
        os.close(self._lock)
        self._folder = -1
        self._reported = True

    def _of_completion(self, completion_id: str, *, deleted: bool) -> str:
        return f"{_key(completion_id)}.{'deleted' if deleted else 'named'}.{self._counts.rank}"

    def _make(self, link: str) -> bool:
        """Make a link. False if there is one."""
        try:
            os.symlink(f"{self._counts.rank}.{time.monotonic_ns()}", link, dir_fd=self._folder)
        except FileExistsError:
            return False
        except OSError as error:
            self._report(error)
        return True

    def _remove(self, link: str) -> None:
        try:
            os.unlink(link, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._report(error)

    def _target(self, link: str) -> str | None:
        try:
            return os.readlink(link, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._report(error)
            return None

    def _targets(self, key: str, kind: str) -> list[str]:
        found = (self._target(f"{key}.{kind}.{rank}") for rank in range(self._counts.count))
        return [target for target in found if target is not None]

    def _is_left_over(self, target: str) -> bool:
        return not self._counts.is_alive(_rank(target))

    def _remove_left_over(self, link: str, target: str) -> bool:
        """Remove what a dead process left. One process at a time: else two could remove each other's new links."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False  # another one is at it; this id is refused once
        try:
            if self._target(link) == target:
                self._remove(link)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        return True

    def _report(self, error: OSError) -> None:
        if not self._reported:
            self._reported = True
            logger.error(
                "pdd: API server processes can no longer tell each other of their handoffs, and each answers for "
                "its own: %s", error,
            )  # fmt: skip


def _key(name: str) -> str:
    return blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _rank(target: str) -> int:
    return int(target.partition(".")[0])


def _made_at(target: str) -> int:
    return int(target.partition(".")[2])
