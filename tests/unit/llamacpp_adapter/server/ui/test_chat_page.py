"""The chat page in a real browser, over scripted answers."""

from __future__ import annotations

import re

import pytest
from browser import PHONE
from device_server import wait_until
from playwright.sync_api import expect

EVIL = (
    "<script>alert(1)</script>",
    "<img src=http://elsewhere.example/x.png onerror=alert(2)>",
    "![x](http://elsewhere.example/y.png)",
    "[x](javascript:alert(3)) [y](data:text/html,<script>alert(4)</script>)",
    "`<b onclick=alert(5)>` **<iframe srcdoc='<script>alert(6)</script>'></iframe>**",
    "```<style>@import 'http://elsewhere.example/z.css'</style>\n<svg onload=alert(7)>\n```",
    "| <th> | b |\n|---|---|\n| <td onmouseover=alert(8)> | </table> |",
)
FORBIDDEN = "script, img, iframe, style, svg, link, object, b, a:not([href^='http://']):not([href^='https://'])"

POINTS = re.compile(r"^\S+( \S+){4}$")
"""Of five tokens."""
NAMELESS = """
[...document.querySelectorAll('button, input, select, textarea, svg[role], a, aside, dialog')]
  .filter((one) => !(one.textContent.trim() || one.labels?.length || one.getAttribute('aria-label')))
  .map((one) => one.outerHTML)"""
FOCUSED = """
((one) => one.textContent.trim() || one.name || one.id)(document.activeElement)"""


def prompt(runtime, index=-1):
    return bytes(runtime.sessions[index].request.prompt_token_ids).decode()


def test_an_answer_streams_coloured_by_who_made_it_with_its_plan_and_timeline(visit, service, hold):
    held = hold()
    served = service(["Hel", "lo", held, " you", "!"])
    seen = visit(served)
    page = seen.open()
    expect(page.get_by_text("tiny, 4096 tokens")).to_be_visible()
    seen.ask("Hi there")
    answer = seen.answers()
    expect(answer.locator("span.cloud")).to_have_text("Hello")
    expect(answer.locator("span.device")).to_have_count(0)
    expect(page.get_by_text("Why: the cheapest plan that keeps the goals.")).to_be_visible()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")
    held.let_go()
    expect(answer.locator("span.device")).to_have_text(" you!")
    expect(answer.get_by_role("img", name="the device goes on here")).to_be_visible()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
    lines = page.locator("#timeline polyline")
    assert [line.get_attribute("class") for line in lines.all()] == ["received", "cloud", "device"]
    expect(page.locator("#timeline line.over")).to_have_count(1)
    said = "4 tokens, the first after 0 ms, the last after 300 ms; the device's first was shown after 200 ms"
    expect(page.locator("#timeline")).to_have_attribute("aria-label", said)
    figures = page.locator("#figures")
    expect(figures).to_contain_text("By the cloud2 tokens")
    expect(figures).to_contain_text("in this chat2 of 5 (40 %)")
    seen.check()


def test_tokens_that_wait_to_be_shown_are_in_the_timeline(visit, service, hold):
    held = hold()
    seen = visit(service(["A", "B", held, "C", "D", "E"], session={"ahead": 5}))
    page = seen.open()
    seen.ask("Hi")
    expect(seen.answers().locator(".body")).to_have_text("AB")
    expect(page.locator("#timeline polyline.received")).to_have_attribute("points", POINTS)
    expect(page.locator("#timeline polyline.cloud")).to_have_attribute("points", re.compile(r"^\S+ \S+$"))
    held.let_go()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator("#timeline polyline.received")).to_have_attribute("points", POINTS)
    expect(page.locator("#timeline polyline.device")).to_have_attribute("points", re.compile(r"^\S+ \S+ \S+$"))
    seen.check()


def test_a_chat_of_several_turns_can_be_edited_and_retried(visit, service):
    served = service(["Yes"])
    runtime = served.runtime
    seen = visit(served)
    page = seen.open()
    question = page.get_by_label("Your question")
    question.fill("One")
    question.press("Enter")
    expect(seen.answers()).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    seen.ask("Two\nlines")
    expect(seen.answers()).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert prompt(runtime) == "<user>One\n<assistant>Yes\n<user>Two\nlines\n<assistant>"

    page.get_by_role("button", name="Retry").last.click()
    wait_until(lambda: len(runtime.sessions) == 3)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert prompt(runtime) == prompt(runtime, 1)
    expect(seen.answers()).to_have_count(2)

    page.get_by_role("button", name="Edit").first.click()
    edited = page.get_by_label("Edit your question")
    expect(edited).to_be_focused()
    edited.fill("Other")
    page.get_by_role("button", name="Ask again").click()
    wait_until(lambda: len(runtime.sessions) == 4)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert prompt(runtime) == "<user>Other\n<assistant>"
    expect(page.locator("article")).to_have_count(2)

    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    seen.check()


@pytest.mark.parametrize("how", ["button", "key"])
def test_stopping_ends_the_answer_on_the_server(visit, service, hold, how):
    served = service(["So", " far", hold(), " no further"])
    seen = visit(served)
    page = seen.open()
    seen.ask("Go")
    expect(seen.answers().locator(".body")).to_have_text("So far")
    assert served.queue.running == 1
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(seen.answers()).to_contain_text("Stopped.")
    wait_until(lambda: served.queue.running == 0)
    (session,) = served.runtime.sessions
    assert session.left
    assert not session.ended
    expect(seen.answers().locator(".body")).to_have_text("So far")
    expect(page.get_by_role("button", name="Retry")).to_be_enabled()
    seen.check()


def test_markup_in_questions_and_answers_stays_text(visit, service):
    served = service(["\n\n".join(EVIL)])
    served.runtime.model_name = "<b>tiny</b>"
    seen = visit(served)
    page = seen.open()
    for text in EVIL:
        seen.ask(text)
        expect(page.locator("article.user").last.locator(".body")).to_have_text(text)
        expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_text("<b>tiny</b>")).to_be_visible()
    expect(seen.answers().first).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#messages").locator(FORBIDDEN)).to_have_count(0)
    assert [one for one in page.locator("#messages a").all() if "elsewhere" not in one.get_attribute("href")] == []
    seen.check()


def test_the_key_is_asked_for_once_and_kept_in_the_tab(visit, service):
    seen = visit(service(["Yes"], api_key="schlüssel-☃"))
    page = seen.open()
    page.get_by_label("API key").get_by_label("This server needs a key").fill("wrong")
    page.get_by_role("button", name="Use").click()
    page.get_by_label("This is not the server's key").fill("schlüssel-☃")
    page.get_by_role("button", name="Use").click()
    expect(page.get_by_text("tiny, 4096 tokens")).to_be_visible()
    refused = len(seen.errors)
    seen.ask("Hi")
    expect(seen.answers().locator(".body")).to_have_text("Yes")
    seen.open("/status")
    expect(page.get_by_text("Longest prompt and answer")).to_be_visible()
    assert len(seen.errors) == refused == 2
    seen.check(errors=2)


def test_a_key_that_is_not_given_is_asked_for_again_by_the_next_question_only(visit, service):
    seen = visit(service(["Yes"], api_key="k"))
    page = seen.open()
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_text("The server needs a key.")).to_be_visible()
    seen.ask("Hi")
    page.get_by_label("This server needs a key").fill("k")
    page.get_by_role("button", name="Use").click()
    expect(seen.answers().locator(".body")).to_have_text("Yes")
    seen.check(errors=2)


def test_a_model_that_is_not_there_yet_is_said(visit, service):
    seen = visit(service(loaded=False))
    page = seen.open()
    expect(page.get_by_role("status").first).to_have_text("Loading model")
    seen.check(errors=1)


def test_a_refusal_is_shown_in_the_server_s_words(visit, service):
    seen = visit(service())
    page = seen.open()
    page.get_by_text("Settings").click()
    page.get_by_label("Refine the prompt").fill("a bit")
    seen.ask("Hi")
    expect(page.get_by_role("alert")).to_contain_text("pdd.refine")
    seen.check(errors=1)


def test_an_error_inside_a_stream_is_shown_behind_what_came(visit, service):
    seen = visit(service(["So far", RuntimeError("secret")]))
    page = seen.open()
    seen.ask("Hi")
    expect(page.get_by_role("alert")).to_be_visible()
    expect(seen.answers().locator(".body")).to_have_text("So far")
    expect(page.get_by_role("alert")).not_to_contain_text("secret")
    seen.check()


def test_settings_go_with_each_question_and_are_kept(visit, service):
    served = service(["Yes"])
    seen = visit(served)
    page = seen.open()
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Longest answer").fill("7")
    page.get_by_label("Rate").fill("12")
    page.get_by_role("combobox", name="Plan").select_option("device")
    page.get_by_label("Refine the prompt").fill("512 tokens")
    page.get_by_label("Colours").select_option("dark")
    page.reload()
    seen.ask("Hi")
    expect(seen.answers().locator(".body")).to_have_text("Yes")
    request = served.runtime.sessions[0].request
    assert (request.temperature, request.max_tokens) == (0.5, 7)
    assert (request.own.rate, request.own.plan, request.own.refine) == (12, "device", "512 tokens")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
    seen.check()


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 24, 29)")])
@pytest.mark.parametrize("path", ["/", "/status"])
def test_colours_are_the_system_s(visit, service, path, scheme, ground):
    seen = visit(service(), color_scheme=scheme)
    page = seen.open(path)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    seen.check()


def test_a_phone_scrolls_in_one_direction_only(visit, service):
    wide = "x" * 500
    answer = f"{wide}\n\n```\n{wide}\n```\n\n| {wide} | b |\n|---|---|\n| c | {wide} |"
    seen = visit(service([answer]), viewport=PHONE)
    page = seen.open()
    seen.ask(wide)
    expect(seen.answers().locator("td")).to_have_count(2)
    expect(page.get_by_role("button", name="Send")).to_be_in_viewport()
    expect(seen.answers().locator("td").first).to_be_in_viewport()
    assert seen.fits()
    seen.open("/status")
    expect(page.locator("#answers tbody tr")).to_have_count(1)
    assert seen.fits()
    seen.check()


def test_the_keyboard_reaches_everything_and_every_control_has_a_name(visit, service):
    seen = visit(service(["Yes"]))
    page = seen.open()
    expect(page.get_by_label("Your question")).to_be_focused()
    seen.ask("Hi")
    expect(seen.answers().locator(".body")).to_have_text("Yes")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_text("Settings").click()
    assert page.evaluate(NAMELESS) == []
    reached = []
    page.locator("body").evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    for name in ("Skip to the question", "Status", "Edit", "Retry", "question", "Send", "New chat", "temperature"):
        assert name in reached, name
    seen.check()
