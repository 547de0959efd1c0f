"""Background jobs, whose handoff ids begin with ``batch-``, get few tokens, and fewer when the cloud is busy."""

from pdd_core import BudgetRequest, CloudLoad, hookimpl

BUSY = 8


@hookimpl
def pdd_decode_budget(request: BudgetRequest, load: CloudLoad) -> int | None:
    if not request.handoff_id.startswith("batch-"):
        return None  # not ours: the next policy decides
    return 1 if load.running >= BUSY else 4
