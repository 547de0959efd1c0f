"""What one session is made with: its caller's options, and what its parts share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.errors import PDDError
    from pdd_core.handoff import CloudInfo
    from pdd_core.patience import Patience
    from pdd_core.plugins import Policies
    from pdd_core.refinement.guard import Guard
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.device_profile import DeviceProfile
    from pdd_llamacpp_adapter.engine.grammar import GrammarEngine, GrammarMatcher
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.cells_check import CellsChecks
    from pdd_llamacpp_adapter.session.cells_fetch import CellsFetch
    from pdd_llamacpp_adapter.session.judging import Judging
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer
    from pdd_llamacpp_adapter.session.outcome import Mode
    from pdd_llamacpp_adapter.session.pacing import GuardedPacer
    from pdd_llamacpp_adapter.session.refined_prompt_fetch import RefinedPromptFetch

Progress = Callable[[int, int, str], None]
"""Called with (tokens processed, tokens there are, phase ``prefill`` or ``catch_up``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The arguments of `AnswerSession`, which says what they mean, with their defaults filled in."""

    engine: DeviceEngine | None
    cloud: CloudClient | None
    told: CloudInfo | None
    mode: Mode
    vocab: Vocabulary | None
    policies: Policies | None
    rate: float
    flush_within: float
    profile: DeviceProfile | None
    patience: Patience
    speed: DeviceSpeed
    grammars: GrammarEngine | None
    guard: Guard
    cells_checks: CellsChecks
    on_progress: Progress | None
    on_cloud_error: Callable[[PDDError], object] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSetup:
    """What the parts of one session share. Made once, before anything is sent or computed."""

    request: AnswerRequest
    options: SessionOptions
    live: LiveAnswer
    pacer: GuardedPacer
    judging: Judging
    matcher: GrammarMatcher | None
    """Follows the request's grammar on the device."""
    fetch: RefinedPromptFetch | None
    """Fetches the refined prompt; None where the request asks for none."""
    cells: CellsFetch | None
    """Fetches the cloud's cells of the prompt; None where the request asks for none."""
    reuse_refined: bool
    """The device may go on from a refined prompt that it read for an earlier answer and still holds."""

    @property
    def wants_likelihoods(self) -> bool:
        """Whether the guard needs the cloud's likelihoods: without them nobody can judge what the device reads."""
        return self.reuse_refined or any(
            one is not None and one.reason is None for one in (self.fetch, self.cells)
        )
