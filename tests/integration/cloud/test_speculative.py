"""N-gram speculation makes several tokens a step; a budget still ends where it says, with the same tokens."""

import json


def test_budgets_are_exact_under_speculation(speculated):
    line = next((line for line in speculated.stdout.splitlines() if line.startswith("RESULT")), None)
    assert line is not None, speculated.stderr[-3000:]
    result = json.loads(line.removeprefix("RESULT"))
    assert result["most_tokens_in_a_step"] > 1, "nothing was speculated"
    whole = result["ids"][-1]
    for budget, ids, end in zip(result["budgets"], result["ids"], result["ends"], strict=True):
        assert ids == whole[:budget]
        assert end == ["length", "pdd_handoff" if budget < 30 else None]
