"""The code of docs/wire.md, in order, against the real server."""

import json
from pathlib import Path

from cloud_support import KEY
from readme import blocks

from pdd_core.handoff import HandoffState, HandoffUpdate

PAGE = Path(__file__).parents[3] / "docs" / "wire.md"


def test_the_code_about_the_wire_runs(cloud, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", cloud.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    reader = {}
    stream, question = blocks(PAGE, "python")
    exec(stream, reader)  # noqa: S102 - the page's own
    updates = [HandoffUpdate.model_validate(update) for update in reader["updates"]]
    assert [update.decode_budget.tokens for update in updates] == [8] * len(updates)
    assert (updates[0].status, updates[-1].status) == ("running", "handed_off")
    assert [update.refinement.kind for update in updates if update.refinement] == ["refined"]
    assert len(reader["text"]) > 8
    exec(question, reader)  # noqa: S102
    state = HandoffState.model_validate(reader["state"])
    assert (state.after, len(state.output_token_ids)) == (4, 4)
    assert reader["deleted"]["confirmed"] is True


def test_the_event_that_is_shown_is_an_update():
    [shown] = blocks(PAGE, "json")
    chunk = json.loads(shown)
    assert chunk["choices"] == []
    update = HandoffUpdate.model_validate(chunk["pdd"])
    assert list(chunk["pdd"]) == list(HandoffUpdate.model_fields)
    assert update.decode_budget.tokens == 8
