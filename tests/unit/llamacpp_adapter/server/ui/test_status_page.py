"""The status page in a real browser."""

from __future__ import annotations

import anyio
import httpx2
from playwright.sync_api import expect

from pdd_llamacpp_adapter.server.streams.kept_streams import REPLACED, UNREAD
from pdd_llamacpp_adapter.server.wire.failures import DELETED, INTERNAL

CHAT = {"messages": [{"role": "user", "content": "SECRET"}]}


def test_it_shows_the_queue_the_answers_and_what_was_learnt(visit, service):
    served = service(["Hel", "lo", " you"], max_queue=5)
    seen = visit(served)
    for _ in range(2):
        httpx2.post(seen.url + "/v1/chat/completions", json=CHAT, timeout=60).raise_for_status()
    page = seen.open("/status")
    expect(page.locator("#now")).to_contain_text("Waiting0 of 5")
    rows = page.locator("#answers tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("handoff")
    expect(rows.first).to_contain_text("the cheapest plan that keeps the goals")
    expect(page.locator("#summary")).to_contain_text("Planshandoff 2")
    expect(page.locator("#summary")).to_contain_text("4 and 2")
    expect(page.locator("#learnt")).to_contain_text("80.0 tokens/s ± 8.00 tokens/s")
    expect(page.locator("#learnt")).to_contain_text("400 ms ± 100 ms")
    httpx2.post(seen.url + "/v1/chat/completions", json=CHAT, timeout=60).raise_for_status()
    expect(rows).to_have_count(3)
    assert "SECRET" not in page.content()
    seen.check()


def test_it_shows_an_answer_that_is_being_made(visit, service, portal):
    served = service(["a", portal.call(anyio.Event).wait])
    seen = visit(served)
    seen.open()
    seen.ask("Hi")
    expect(seen.answers().locator(".body")).to_have_text("a")
    other = seen.context.new_page()
    other.goto(seen.url + "/status")
    expect(other.locator("#now")).to_contain_text("Being made1 of 1")
    seen.check()


def test_an_answer_that_its_client_has_stopped_has_not_failed(visit, service):
    served = service()
    for why in (INTERNAL, DELETED, REPLACED, UNREAD):
        served.recent.add(None, why)
    seen = visit(served)
    page = seen.open("/status")
    ends = page.locator("#answers tbody td:last-child")
    expect(ends).to_have_text(["left", "replaced", "stopped", "internal_error"])
    expect(page.locator("#summary")).to_contain_text("Answers4")
    expect(page.locator("#summary")).to_contain_text("Failed1")
    seen.check()
