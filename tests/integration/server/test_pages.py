"""The chat page in a real browser: an answer that two engines make, and one whose connection is cut."""

import json
import re

import pytest
from browser import Visit, browser
from device_server import closed_port, forwarded, wait_until

LONG = "Tell me a long story about a lighthouse, with its keeper, the boats, and the storm."


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made


@pytest.fixture
def seen(chromium, paired):
    return Visit(chromium, paired.root)


def test_an_answer_whose_connection_is_cut_twice_is_shown_whole(chromium, device):
    from playwright.sync_api import expect

    with forwarded(closed_port(), int(device.root.rsplit(":", 1)[1])) as network:
        network.open()
        seen = Visit(chromium, f"http://127.0.0.1:{network.port}")
        page = seen.open()
        page.get_by_label("This server needs a key").fill(device.api_key)
        page.get_by_role("button", name="Use").click()
        page.get_by_text("Settings").click()
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Longest answer").fill("120")
        page.get_by_label("Rate").fill("6")  # so that there is something to cut, twice
        seen.ask(LONG)
        for words in (4, 8):
            expect(seen.answers().locator(".body")).to_have_text(re.compile(rf"(\S+\s+){{{words}}}"))
            network.close()
            expect(seen.answers()).to_contain_text("The connection is lost")
            network.open()
            expect(seen.answers()).to_contain_text("Reconnected.")
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        shown = seen.answers().locator(".body").text_content()
        said = page.locator("#timeline").get_attribute("aria-label")
        seen.check(errors=3)
        seen.context.close()
    [*_, stream] = device.get("/v1/streams").json()
    whole = device.get(f"/v1/stream/{stream['conversation_id']}").text
    chunks = [json.loads(line[6:]) for line in whole.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert re.sub(r"\W", "", shown) == re.sub(r"\W", "", text) != ""
    assert said.startswith(f"{chunks[-1]['pdd']['tokens']['device']} tokens, ")


def test_the_take_over_is_seen_while_it_happens_and_stopping_frees_both_engines(seen, paired):
    from playwright.sync_api import expect  # not in the environment that collects this file and leaves it out

    page = seen.open()
    expect(page.locator("#server")).to_contain_text("cloud connected")
    page.get_by_text("Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill("24")
    seen.ask("Why is the sky blue?")
    answer = seen.answers().last
    expect(answer.locator("span.cloud").first).to_be_visible()
    expect(answer.locator("span.device").first).to_be_visible()
    expect(answer.get_by_role("img", name="the device goes on here")).to_have_count(1)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert page.locator("#timeline").get_attribute("aria-label").startswith("24 tokens, the first after ")
    expect(page.locator("#timeline line.over")).to_have_count(1)
    expect(page.locator("#plan")).to_contain_text("The cloud begins, and the device goes on.")
    figures = page.locator("#figures").text_content()
    cloud, device = re.search(r"By the cloud(\d+) tokens?By the device(\d+) token", figures).groups()
    assert int(cloud) + int(device) == 24
    assert int(cloud) >= 1 <= int(device)

    page.get_by_role("combobox", name="Plan").select_option("device")
    page.get_by_label("Longest answer").fill("600")
    page.get_by_label("Rate").fill("5")  # so that there is something to stop
    seen.ask(LONG)
    expect(seen.answers().last.locator("span.device").first).to_be_visible()
    assert paired.at_work() == 1
    page.get_by_role("button", name="Stop").click()
    expect(seen.answers().last).to_contain_text("Stopped.")
    wait_until(lambda: not paired.at_work())
    expect(seen.answers().last.locator("span.cloud")).to_have_count(0)

    page = seen.open("/status")
    rows = page.locator("#answers tbody tr")
    expect(rows.nth(1)).to_contain_text("handoff")
    expect(rows.nth(0)).to_contain_text("device only")
    expect(rows.nth(0)).to_contain_text("stopped")
    expect(page.locator("#now")).to_contain_text("connected")
    seen.check()
