"""The chat page whose network breaks, or which is loaded again, in the middle of an answer."""

from __future__ import annotations

import threading
import time

import pytest
from device_server import wait_until
from playwright.sync_api import expect

from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

LOST = "The connection is lost: trying again …"


def text_of(seen):
    return seen.answers().last.locator(".body")


def begun(seen, said="A"):
    """Ask, and wait until so much of the answer is shown."""
    page = seen.open()
    seen.ask("Go")
    expect(text_of(seen)).to_have_text(said)
    return page


def give_key(page, key):
    page.get_by_label("This server needs a key").fill(key)
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_text("tiny, 4096 tokens")).to_be_visible()


@pytest.mark.parametrize("key", [None, "sesame"])
def test_what_is_missed_while_the_network_is_gone_is_shown_once_and_in_order(visit, service, hold, key):
    first, second = hold(), hold()
    served = service(["A", first, "B", "é", second, "D"], api_key=key)
    seen = visit(served, network=True)
    page = seen.open()
    if key is not None:
        give_key(page, key)
    seen.ask("Go")
    expect(text_of(seen)).to_have_text("A")
    seen.network.close()
    expect(seen.answers()).to_contain_text(LOST)
    first.let_go()
    [session] = served.runtime.sessions
    wait_until(lambda: len(session.tokens) == 3)
    seen.network.open()
    expect(text_of(seen)).to_have_text("ABé")
    expect(seen.answers()).to_contain_text("Reconnected.")
    expect(seen.answers()).not_to_contain_text(LOST)
    second.let_go()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(text_of(seen)).to_have_text("ABéD")
    assert page.locator("#timeline").get_attribute("aria-label").startswith("4 tokens, ")
    expect(page.locator("#figures")).to_contain_text("By the cloud2 tokensBy the device2 tokens")
    assert served.runtime.sessions == [session]
    seen.check(errors=1)


def test_an_answer_can_be_stopped_after_the_connection_is_back(visit, service, hold):
    served = service(["A", hold(), "B"])
    seen = visit(served, network=True)
    page = begun(seen)
    for _ in range(2):
        seen.network.close()
        expect(seen.answers()).to_contain_text(LOST)
        seen.network.open()
        expect(seen.answers()).to_contain_text("Reconnected.")
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers()).to_contain_text("Stopped.")
    wait_until(lambda: served.queue.running == 0)
    assert served.runtime.sessions[0].left
    assert served.streams.all() == []
    expect(text_of(seen)).to_have_text("A")
    seen.check(errors=2)


def test_who_stops_an_answer_that_the_server_cannot_be_told_of_learns_so(visit, service, hold):
    held = hold()
    served = service(["A", held, "B"])
    seen = visit(served, network=True)
    page = begun(seen)
    seen.network.close()
    expect(seen.answers()).to_contain_text(LOST)
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers()).to_contain_text("Stopped.")
    expect(page.get_by_role("alert")).to_contain_text("The server does not know")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    seen.check(errors=2)


def test_where_the_stream_is_gone_the_page_says_so_and_can_ask_again(visit, service, hold, portal):
    served = service(["A", hold(), "B"])
    seen = visit(served, network=True)
    page = begun(seen)
    seen.network.close()
    expect(seen.answers()).to_contain_text(LOST)
    [stream] = served.streams.all()
    portal.call(served.streams.remove, stream.conversation_id)
    seen.network.open()
    expect(page.get_by_role("alert")).to_have_text("The server no longer has the rest of this answer.")
    expect(text_of(seen)).to_have_text("A")
    served.runtime.script = ["New"]
    page.get_by_role("button", name="Retry").click()
    expect(text_of(seen)).to_have_text("New")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    seen.check(errors=2)


def test_a_question_that_has_not_arrived_is_asked_again(visit, service):
    served = service(["Yes"])
    seen = visit(served, network=True)
    page = seen.open()
    expect(page.get_by_text("tiny, 4096 tokens")).to_be_visible()
    seen.network.close()
    seen.ask("Go")
    expect(seen.answers()).to_contain_text(LOST)
    seen.network.open()
    expect(text_of(seen)).to_have_text("Yes")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert len(served.runtime.sessions) == 1
    seen.check(errors=2)


def test_a_connection_on_which_nothing_comes_any_more_is_given_up(visit, service, hold):
    """As after a laptop's sleep: nobody has closed it."""
    held = hold()
    seen = visit(service(["A", held, "B"]))
    seen.page.clock.install()
    page = begun(seen)
    page.clock.fast_forward(31_000)
    expect(seen.answers()).to_contain_text("Reconnected.")
    held.let_go()
    expect(text_of(seen)).to_have_text("AB")
    assert len([url for url in seen.asked if "/v1/stream/" in url]) == 1
    seen.check()


def test_a_page_that_is_loaded_again_has_its_chat_and_goes_on_with_its_answer(visit, service, hold):
    held = hold()
    served = service(["A", held, "B"])
    seen = visit(served)
    page = begun(seen)
    page.reload()
    expect(text_of(seen)).to_have_text("A")
    [stream] = served.streams.all()
    page.get_by_role("link", name="Status").click()
    expect(page.locator("#now")).to_contain_text("Being made1 of 1")
    assert stream._patience == stream._ttl
    page.get_by_role("link", name="Chat").click()
    expect(text_of(seen)).to_have_text("A")
    held.let_go()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    for _ in range(2):
        expect(text_of(seen)).to_have_text("AB")
        expect(page.locator("article.user .body")).to_have_text("Go")
        assert len(served.runtime.sessions) == 1
        page.reload()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.get_by_text("tiny, 4096 tokens")).to_be_visible()
    expect(page.locator("article")).to_have_count(0)
    seen.check()


def test_a_page_that_is_left_and_does_not_come_back_ends_its_answer(visit, service, hold):
    served = service(["A", hold(), "B"], keep_alive=0.05)
    seen = visit(served)
    page = begun(seen)
    [stream] = served.streams.all()
    page.goto("about:blank")
    wait_until(lambda: stream._patience == 10 and not stream._readers)
    assert served.queue.running == 1
    later = time.monotonic() + 11
    stream._clock = lambda: later
    wait_until(lambda: served.queue.running == 0)
    assert served.runtime.sessions[0].left


def test_a_page_that_comes_back_too_late_says_so_and_can_ask_again(visit, service, hold, portal):
    served = service(["A", hold(), "B"])
    seen = visit(served)
    page = begun(seen)
    page.goto("about:blank")
    [stream] = served.streams.all()
    portal.call(served.streams.remove, stream.conversation_id)
    seen.open()
    expect(page.get_by_role("alert")).to_have_text("The server no longer has the rest of this answer.")
    served.runtime.script = ["New"]
    page.get_by_role("button", name="Retry").click()
    expect(text_of(seen)).to_have_text("New")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    seen.check(errors=1)


def test_an_answer_is_stopped_before_its_first_token(visit, service, hold):
    served = service([hold(), "A"])
    seen = visit(served)
    page = seen.open()
    seen.ask("Go")
    wait_until(lambda: served.queue.running == 1)
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers()).to_contain_text("Stopped.")
    wait_until(lambda: served.queue.running == 0 and not served.streams.all())
    seen.check()


def test_an_answer_is_stopped_whose_question_is_still_read(visit, service, hold, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()
    served = service(["A", hold(), "B"])
    render = served.runtime.vocab.render_chat

    def slow(*args, **kwargs):
        reading.set()
        go_on.wait(60)
        return render(*args, **kwargs)

    monkeypatch.setattr(served.runtime.vocab, "render_chat", slow)
    seen = visit(served)
    page = seen.open()
    seen.ask("Go")
    reading.wait(60)
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers()).to_contain_text("Stopped.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    go_on.set()
    wait_until(lambda: served.runtime.sessions and served.runtime.sessions[0].left)
    wait_until(lambda: not served.streams.all())
    seen.check()


def test_where_no_stream_is_kept_stopping_ends_the_answer_and_so_does_the_network(visit, service, hold):
    served = service(["A", hold(), "B"], streams=StreamLimits(count=0))
    seen = visit(served, network=True)
    page = begun(seen)
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers()).to_contain_text("Stopped.")
    wait_until(lambda: served.runtime.sessions[0].left)
    page.get_by_role("button", name="Retry").click()
    expect(text_of(seen)).to_have_text("A")
    seen.network.close()
    wait_until(lambda: served.runtime.sessions[1].left)
    seen.network.open()
    expect(page.get_by_role("alert")).to_have_text("The server no longer has the rest of this answer.")
    seen.check(errors=2)
