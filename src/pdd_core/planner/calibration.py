"""What is known of a device and of a cloud, learnt from every answer.

Both begin with a profile where there is one, else with guesses that may be off by a factor of four, and need no
more than a few answers to be right: `Tracker` says how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.planner.curve import Curve
from pdd_core.planner.profiles import RatePoint, mean_rate, rate_at
from pdd_core.planner.tracker import UNKNOWN_SD, Tracker
from pdd_core.planner.types import CloudState, DeviceState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice

_MEASURED_SD = 0.5
"""Of the logarithm: how far off a profile may be, which was measured on another day."""
_PREFILL_TPS = (RatePoint(at=0, value=300),)
_DECODE_TPS = (RatePoint(at=0, value=20),)
_TTFT_S, _TTFT_PER_TOKEN_S = 0.05, 1e-4
_TPOT_S = 0.03
_RTT_S = 0.03
_TTFT_NOISE = 0.3
_LINK_BPS = 2.5e6
"""20 Mbit/s: what a phone can count on."""
_LINK_NOISE = 0.3
_LEAST_BYTES = 2**17
"""Fewer tell more of round trips than of the link."""
_LEAST_SHARE = 0.1
"""Of the time to the first token that is the cloud's own, however long the round trip was thought to be."""


class DeviceCalibration:
    """How fast one device is with one model.

    Args:
        n_ctx: tokens that its context holds.
        profile: what was measured.
    """

    def __init__(self, n_ctx: int, profile: MeasuredDevice | None = None) -> None:
        self._n_ctx = n_ctx
        self._prefill_shape = _PREFILL_TPS if profile is None else profile.prefill_tps
        self._decode_shape = _DECODE_TPS if profile is None else profile.decode_tps
        noise, sd = (0.1, UNKNOWN_SD) if profile is None else (min(1.0, max(0.03, profile.spread)), _MEASURED_SD)
        self._prefill = Curve(noise=noise, sd=sd)
        self._decode = Curve(noise=noise, sd=sd)

    def read(self, begin: int, end: int, seconds: float) -> None:
        """Learn that tokens `begin` to `end` of a context were prefilled in so many seconds."""
        if end > begin and seconds > 0:
            middle = (begin + end) / 2
            self._prefill.observe(middle, (end - begin) / seconds, shape=_mean(self._prefill_shape, begin, end))

    def decoded(self, context: int, tokens: int, seconds: float) -> None:
        """Learn that `tokens` were decoded, one by one, in `seconds`, at about `context` tokens."""
        if tokens > 0 and seconds > 0:
            self._decode.observe(context, tokens / seconds, shape=_at(self._decode_shape, context))

    def state(self, prompt_tokens: int, held_tokens: int = 0, output_tokens: int = 0) -> DeviceState:
        """Return what to expect for a request."""
        end = max(prompt_tokens, held_tokens + 1)
        context = prompt_tokens + output_tokens
        shape = _mean(self._prefill_shape, held_tokens, end)
        return DeviceState(
            prefill_tps=self._prefill.estimate((held_tokens + end) / 2, shape=shape),
            decode_tps=self._decode.estimate(context, shape=_at(self._decode_shape, context)),
            n_ctx=self._n_ctx,
        )

    def as_json(self) -> dict[str, Any]:
        """Return what was learnt."""
        return {
            "prefill": self._prefill.as_json(self._prefill_at),
            "decode": self._decode.as_json(self._decode_at),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `as_json` wrote, with this profile or another, unless that knew less than this one.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else; nothing has changed then.
        """
        prefill = Curve.from_json(data["prefill"], self._prefill_at)
        decode = Curve.from_json(data["decode"], self._decode_at)
        self._prefill, self._decode = prefill.surer(self._prefill), decode.surer(self._decode)

    def _prefill_at(self, middle: float) -> float:
        return _mean(self._prefill_shape, 0.0, 2 * middle)

    def _decode_at(self, length: float) -> float:
        return _at(self._decode_shape, length)


class CloudCalibration:
    """How soon and how fast one cloud answers, as this device sees it.

    Args:
        profile: what was measured.
    """

    def __init__(self, profile: MeasuredCloud | None = None) -> None:
        self.link_seen = False
        """Whether cells have ever come from this cloud."""
        if profile is None:
            self._first_s, self._per_token_s = _TTFT_S, _TTFT_PER_TOKEN_S
            self._tpot, self._rtt = Tracker(_TPOT_S), Tracker(_RTT_S)
            self._ttft = Curve(noise=_TTFT_NOISE)
            self._link = _link()
            return
        # a prefill is a step of its own where nothing else runs; half the sequences are taken as the usual load
        self._first_s = max(1e-4, profile.base_s + profile.per_request_s)
        self._per_token_s = profile.per_prefill_token_s
        step = profile.base_s + profile.per_sequence_s * profile.max_num_seqs / 2
        jitter = profile.jitter_s / profile.rtt_s if profile.rtt_s else 1.0
        self._ttft = Curve(noise=_TTFT_NOISE, sd=_MEASURED_SD)
        self._tpot = Tracker(max(step, 1e-4), sd=_MEASURED_SD)
        self._rtt = Tracker(max(profile.rtt_s, 1e-4), noise=min(1.0, max(0.03, jitter)), sd=_MEASURED_SD)
        self._link = (
            _link()
            if profile.link_bps is None
            else _link(profile.link_bps, noise=min(1.0, max(0.03, profile.link_spread)), sd=_MEASURED_SD)
        )

    def first_token(self, prompt_tokens: int, seconds: float) -> None:
        """Learn the time from a request to its first token's arrival, round trip included."""
        own = max(seconds - self._rtt.median, _LEAST_SHARE * seconds)
        self._ttft.observe(prompt_tokens, own, shape=self._shape(prompt_tokens))

    def step(self, seconds: float) -> None:
        """Learn the mean time between two tokens of one answer."""
        self._tpot.observe(seconds)

    def round_trip(self, seconds: float) -> None:
        """Learn the time of one round trip."""
        self._rtt.observe(seconds)

    def cells(self, size: int, seconds: float) -> None:
        """Learn that cells of `size` bytes arrived in so many seconds."""
        if size >= _LEAST_BYTES and seconds > 0:
            self._link.observe(size / seconds)
            self.link_seen = True

    def state(
        self,
        prompt_tokens: int,
        *,
        refines: bool = False,
        max_model_len: int | None = None,
        available: bool = True,
        kv: bool = False,
    ) -> CloudState:
        """Return what to expect for a request, the link with `kv` only; the three before are passed on."""
        return CloudState(
            ttft_s=self._ttft.estimate(prompt_tokens, shape=self._shape(prompt_tokens)),
            tpot_s=self._tpot.estimate(),
            rtt_s=self._rtt.estimate(),
            refines=refines,
            max_model_len=max_model_len,
            available=available,
            link_bps=self._link.estimate() if kv else None,
        )

    def _shape(self, prompt_tokens: float) -> float:
        return self._first_s + self._per_token_s * prompt_tokens

    def as_json(self) -> dict[str, Any]:
        """Return what was learnt."""
        learnt = {
            "ttft": self._ttft.as_json(self._shape),
            "tpot": self._tpot.as_json(),
            "rtt": self._rtt.as_json(),
        }
        return {**learnt, "link": self._link.as_json()} if self.link_seen else learnt

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `as_json` wrote, with this profile or another, unless that knew less than this one.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else; nothing has changed then.
        """
        ttft = Curve.from_json(data["ttft"], self._shape)
        tpot, rtt = Tracker.from_json(data["tpot"]), Tracker.from_json(data["rtt"])
        if "link" in data:
            link = Tracker.from_json(data["link"], at_once=True)
            self._link, self.link_seen = link.surer(self._link), True
        self._ttft, self._tpot, self._rtt = ttft.surer(self._ttft), tpot.surer(self._tpot), rtt.surer(self._rtt)


def _link(guess: float = _LINK_BPS, *, noise: float = _LINK_NOISE, sd: float = UNKNOWN_SD) -> Tracker:
    # the bytes of one answer came in many pieces: where they are off, the network is another one
    return Tracker(guess, noise=noise, sd=sd, at_once=True)


def _mean(points: Sequence[RatePoint], begin: float, end: float) -> float:
    return points[0].value if len(points) == 1 else float(mean_rate(points, begin, end))


def _at(points: Sequence[RatePoint], length: float) -> float:
    return points[0].value if len(points) == 1 else float(rate_at(points, length))
