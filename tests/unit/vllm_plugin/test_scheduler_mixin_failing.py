"""If something of ours raises inside a step, requests run as on plain vLLM, and the log has one line."""

import pytest
from scheduler_fakes import FakeScheduler, Scheduler, request, run


def broken(*_, **__):
    raise ZeroDivisionError("oops")


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("get_request_counts", None),
        ("_pdd_load", None),
        ("restart", "_pdd_gauge"),
        ("decide", "_pdd_decider"),
    ],
)
def test_what_fails_when_a_request_comes_leaves_it_whole(monkeypatch, caplog, name, part):
    scheduler = Scheduler()
    with monkeypatch.context() as patch:
        patch.setattr(getattr(scheduler, part) if part else scheduler, name, broken)
        for one in ("a", "b"):
            scheduler.add_request(request(one, budget=3))
        tokens, last, reports = run(scheduler)
    assert (tokens, last.finish_reason, last.stop_reason, reports) == (40, "length", None, [])
    [line] = errors(caplog)
    assert "some requests run without a decode budget, as on plain vLLM: ZeroDivisionError" in line
    scheduler.add_request(request("c", budget=3))  # the next one is not to blame
    assert run(scheduler)[0] == 3


def test_a_request_whose_parameters_cannot_be_changed_keeps_its_limit(caplog):
    scheduler = Scheduler()
    made = request(budget=3, min_tokens=8)
    made.sampling_params.clone = broken
    scheduler.add_request(made)
    assert (made.max_tokens, run(scheduler)[0]) == (20, 20)
    assert len(errors(caplog)) == 1


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("_pdd_note_begun", None),
        ("_pdd_load", None),
        ("observe", "_pdd_gauge"),
        ("_pdd_write_report", None),
    ],
)
def test_what_fails_in_a_step_lifts_all_budgets(monkeypatch, caplog, name, part):
    scheduler = Scheduler()
    for one in ("a", "b"):
        scheduler.add_request(request(one, budget=3))
    monkeypatch.setattr(getattr(scheduler, part) if part else scheduler, name, broken)
    tokens, last, _ = run(scheduler)
    assert (tokens, last.finish_reason, last.stop_reason) == (40, "length", None)
    assert scheduler._pdd_budgeted == {}
    scheduler.add_request(request("c", budget=3))  # nobody would mark its end
    assert run(scheduler)[0] == 20
    [line] = errors(caplog)
    assert "decode budgets are off from here on: ZeroDivisionError" in line


def test_a_report_that_fails_leaves_what_the_budget_ended_marked(monkeypatch, caplog):
    monkeypatch.setattr("pdd_vllm_plugin.scheduler_mixin.write_budget_report", broken)
    scheduler = Scheduler()
    for one in ("a", "b"):
        scheduler.add_request(request(one, budget=1))
    scheduler.add_request(request("long", budget=9))
    outputs = {output.request_id: output for output in scheduler.step()}
    assert [outputs[one].stop_reason for one in ("a", "b")] == ["pdd_handoff"] * 2
    assert run(scheduler)[0] == 19  # the budget is lifted: the rest of 20
    assert len(errors(caplog)) == 1


def test_an_engine_that_does_not_tell_what_it_finished_is_not_ended(monkeypatch, caplog):
    def finish_requests(self, request_ids, finished_status):
        FakeScheduler.finish_requests_before(self, request_ids, finished_status)

    monkeypatch.setattr(FakeScheduler, "finish_requests_before", FakeScheduler.finish_requests, raising=False)
    monkeypatch.setattr(FakeScheduler, "finish_requests", finish_requests)
    scheduler = Scheduler()
    scheduler.add_request(request(budget=3))
    assert scheduler.finish_requests(["r"], None) is None
    assert scheduler._pdd_budgeted == {}
    assert len(errors(caplog)) == 1
