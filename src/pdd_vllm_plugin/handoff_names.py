"""Names of handoff states: which there can be, and what a store asks of the other API server processes.

`HandoffNames` is for a server with one API process, where the store itself knows everything.
`processes.shared_names.SharedNames` is for several.
"""

from __future__ import annotations

from typing import NamedTuple

from pdd_core.errors import InvalidOptIn
from pdd_core.optin import HANDOFF, HANDOFF_ID_CHARS
from pdd_vllm_plugin.compat import client_chosen_part

MAX_REQUEST_ID_CHARS = 256


def names_a_state(completion_id: str) -> bool:
    """Whether a completion's id is long enough to name a state: a client may have chosen a short one."""
    return len(client_chosen_part(completion_id)) >= HANDOFF_ID_CHARS[0]


def check_request_id(request_id: str) -> None:
    """Check the id that vLLM gives a request. A client chooses it, in any length, and a state keeps it.

    Raises:
        InvalidOptIn: it is too long.
    """
    if len(request_id) > MAX_REQUEST_ID_CHARS:
        problem = f"must have at most {MAX_REQUEST_ID_CHARS} characters with {HANDOFF}, vLLM's own ones included"
        raise InvalidOptIn(f"X-Request-Id {problem}", param="X-Request-Id")


class Totals(NamedTuple):
    """What the other processes hold together."""

    records: int = 0
    """States."""
    ended: int = 0
    """Those of requests that have ended, which can make way."""
    held: int = 0
    """Token ids of 4 bytes, as in `HandoffRecord.size`."""


_NOTHING = Totals()


class HandoffNames:
    """There is no other process: each name is free that the store does not have."""

    def is_taken(self, _handoff_id: str) -> bool:
        """Does another process have a running request of this id, or remember that it was deleted?"""
        return False

    def claim(self, _handoff_id: str) -> bool:
        """Take an id for a running request or a deletion. False if another process has it."""
        return True

    def ended(self, _handoff_id: str) -> None:
        """Tell that the request of this id has ended: any process may take the id for a new one."""

    def bury(self, _handoff_id: str) -> bool:
        """Tell that the state is deleted, and its id still taken. False if another process has the id by now."""
        return True

    def free(self, _handoff_id: str, *, ended: bool) -> None:
        """Tell that the state is dropped (of a request that has `ended` or not), or its deletion forgotten."""

    def name_completion(self, _completion_id: str, *, deleted: bool = False) -> None:
        """Tell that this process has a state with this completion's id, or had one that was `deleted`."""

    def unname_completion(self, _completion_id: str, *, deleted: bool = False) -> None:
        """Take `name_completion` back."""

    def tell(self, _own: Totals) -> None:
        """Tell the others what this process holds."""

    def others(self) -> Totals:
        """Return what the others hold."""
        return _NOTHING

    def ask_for_room(self) -> None:
        """Ask another process to drop states of ended requests, as far as the bounds require."""


ALONE = HandoffNames()
