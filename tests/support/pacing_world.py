"""Answers as a pacer meets them, shown as a session shows them, and the best that was possible in hindsight."""

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise

NO_OUTLOOK = {"cloud_left": None, "cloud_step": None, "ready_in": None, "device_step": None}


@dataclass
class World:
    """When the tokens of an answer arrive, when it is known to be complete, and what is forecast meanwhile."""

    arrivals: list[float]
    end: float = None
    changes: list[float] = field(default_factory=list)
    """Further times at which the state changes, so that the session asks again."""
    outlook: object = None
    """Called with (time, tokens received); returns `cloud_left`, `cloud_step`, `ready_in` and `device_step`."""

    def __post_init__(self):
        self.end = self.arrivals[-1] if self.end is None else self.end

    def show(self, pacer, *, overshoot=0.0):
        """Return when each token is shown. A wait lasts `overshoot` too long."""
        shown, changes = [], sorted({*self.arrivals, *self.changes, self.end})
        for arrived in self.arrivals:
            now = max(arrived, shown[-1]) if shown else arrived
            while (due := self.ask(pacer, now, shown)) > now and shown:
                following = bisect_right(changes, now)
                if following == len(changes) or changes[following] >= due:
                    now = due + overshoot
                    break
                now = changes[following]
            shown.append(now)
        return shown

    def ask(self, pacer, now, shown):
        received = bisect_right(self.arrivals, now)
        return pacer.due(
            now,
            shown=len(shown),
            shown_at=shown[-1] if shown else None,
            buffered=received - len(shown),
            complete=received == len(self.arrivals) and now >= self.end,
            idle=now - self.arrivals[received - 1],
            **(NO_OUTLOOK if self.outlook is None else self.outlook(now, received)),
        )


def handoff(*, cloud, cloud_step, ready_at, device_step, length):
    """A world with a right forecast: the cloud's steps to its budget or the take-over, the device's to the end."""
    sent = [cloud_step * index for index in range(min(cloud, length)) if cloud_step * index < ready_at]
    made = [ready_at + device_step * index for index in range(length - len(sent))]

    def outlook(now, received):
        mine = now >= ready_at
        return {
            "cloud_left": 0 if mine else min(cloud, length) - received,
            "cloud_step": cloud_step,
            "ready_in": 0.0 if mine else ready_at - now,
            "device_step": device_step,
        }

    return World(sent + made, outlook=outlook)


def gaps(shown):
    return [later - earlier for earlier, later in pairwise(shown)]


def shortest_longest_gap(arrivals, least):
    """The offline optimum: the shortest longest gap of any schedule with gaps of `least` or more.

    Found by bisection: a bound can be kept if showing each token as late as the bound allows waits for none.
    """

    def can_be_kept(bound):
        latest = arrivals[0]
        for arrived in arrivals[1:]:
            latest += bound
            if arrived > latest + 1e-12:
                return False
        return True

    low, high = least, max([least, *gaps(arrivals)])
    if can_be_kept(low):
        return low
    while high - low > 1e-11 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if can_be_kept(middle) else (middle, high)
    return high
