from __future__ import annotations

import subprocess
import sys

import pytest

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_core.session_id import (
    beginning_of_chat,
    beginning_of_prompt,
    check_session_header,
    session_id,
    session_of_client,
)

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "My secret is 4711."}
LATER = [{"role": "assistant", "content": "Noted."}, {"role": "user", "content": "Which one?"}]


def of_chat(*messages: dict[str, str], group: str = "") -> str:
    return session_id(group, beginning_of_chat(messages))


def test_all_turns_of_a_chat_have_one_name() -> None:
    assert of_chat(SYSTEM, FIRST) == of_chat(SYSTEM, FIRST, *LATER)


def test_another_beginning_is_another_conversation() -> None:
    names = {
        of_chat(SYSTEM, FIRST),
        of_chat(FIRST),
        of_chat(SYSTEM, {**FIRST, "content": "Hello"}),
        of_chat(SYSTEM, FIRST, group="somebody else"),
        of_chat(SYSTEM),
    }
    assert len(names) == 5


def test_where_one_part_ends_and_the_next_begins_counts() -> None:
    assert session_id("ab", "c") != session_id("a", "bc")
    assert session_id("\ud800") != session_id("")


def test_a_prompt_that_grows_keeps_its_name() -> None:
    prompt = list(range(100))
    assert session_id(*beginning_of_prompt(prompt)) == session_id(*beginning_of_prompt([*prompt, 1, 2]))
    assert session_id(*beginning_of_prompt([1, 23])) != session_id(*beginning_of_prompt([12, 3]))


def test_another_process_makes_another_name() -> None:
    code = "from pdd_core.session_id import session_id; print(session_id('a'))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert len(told) == 32
    assert told != session_id("a")


def test_what_a_client_sends_is_passed_on_as_far_as_a_header_can_hold_it() -> None:
    assert session_of_client("team-7/chat=3") == "team-7/chat=3"
    for sent in ("a b", "ä", "x" * 257, "a\r\nEvil: 1"):
        assert session_of_client(sent) == session_of_client(sent)
        assert session_of_client(sent).isalnum()


@pytest.mark.parametrize("name", ["X-Session-ID", "x-flow-conversation-id", ""])
def test_a_header_has_a_name(name: str) -> None:
    assert check_session_header(name) == name
    assert ServeSettings.load(None, {"session_header": name}).session_header == name


@pytest.mark.parametrize("name", ["Authorization", "cookie", "X Session", "X-Session: 1\r\nEvil", "Ä", "x" * 65])
def test_a_header_that_means_something_else_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="session_header"):
        ServeSettings.load(None, {"session_header": name})
