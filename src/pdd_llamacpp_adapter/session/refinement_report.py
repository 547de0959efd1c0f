"""What became of one answer's refined prompt, put together for its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.session.outcome import RefinementReport

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.judging import Judging
    from pdd_llamacpp_adapter.session.refined_course import RefinedCourse
    from pdd_llamacpp_adapter.session.refined_prompt_wish import RefinedPromptWish


def refinement_report(
    refining: RefinedPromptWish | None, course: RefinedCourse | None, judging: Judging
) -> RefinementReport | None:
    """Return the report; None where no refined prompt was asked for, and none read."""
    if not judging.judged and (course is None or not course.is_judged):
        return None
    kept = None if refining is None else refining.kept
    reason = None if refining is None else refining.reason
    return RefinementReport(
        ratio=None if refining is None else refining.ratio,
        kept_tokens=None if kept is None else len(kept),
        saved_tokens=0 if course is None else course.saved,
        guard=None if judging.verdict is None else judging.verdict.value,
        guard_excess=judging.excess,
        guard_tokens=judging.judged,
        reason="too_late" if course is not None and course.too_late else reason,
    )
