"""`refine = auto | ratio | off`, as a client of the local server sees it."""

import pytest
from cloud_support import KEY
from device_server import PATIENT, DeviceServer

FACTS = " ".join(
    f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(60)
)
QUESTION = "When were the things in room 23 found?"
ASKED = {"model": "default", "temperature": 0, "max_tokens": 24}
ROOM = 1024
"""Tokens of the device's context: the long prompt does not fit it, the short one does."""


@pytest.fixture(params=["auto", "0.25", "off"])
def refining(request, cloud, tmp_path):
    flags = ("--gguf", "demo", "--n-ctx", str(ROOM), "--cloud", cloud.base_url, "--cloud-api-key", KEY)
    more = ("--decode-budget", "16", "--rate", "unlimited", "--refine", request.param)
    with DeviceServer(tmp_path, *flags, *more, **PATIENT) as server:
        yield request.param, server.connected()


def asked(server, text):
    with server.client() as client:
        answer = client.chat.completions.create(
            **ASKED,
            messages=[{"role": "user", "content": f"{text}\n\n{QUESTION}"}],
            extra_body={"ignore_eos": True},
        )
    return answer.pdd


def test_the_setting_is_seen_in_the_answer(refining):
    setting, server = refining
    if setting != "0.25":
        assert asked(server, FACTS.split(".")[0])["refinement"] is None  # read in no time
    pdd = asked(server, FACTS)
    report = pdd["refinement"]
    if setting == "off":
        assert report is None
        return
    prompt = pdd["tokens"]["prompt"]
    assert report["prompt_tokens"] == prompt > ROOM
    if setting == "auto":
        assert 0 < report["ratio"] <= (ROOM - ASKED["max_tokens"]) / prompt
    else:
        assert report["ratio"] == 0.25
    assert report["kept_tokens"] <= report["ratio"] * prompt + 64  # protected ones may exceed it
    assert report["saved_tokens"] <= prompt - report["kept_tokens"]
    said = [one["what"] for one in pdd["decisions"]]
    assert any("the cloud refined the prompt to" in what for what in said)
    assert any("the guard" in what for what in said)
