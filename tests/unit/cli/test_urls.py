from __future__ import annotations

import pytest

from pdd_cli.urls import openai_base_url
from pdd_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("typed", "url"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("https://h/gateway/v1/", "https://h/gateway/v1"),
    ],
)
def test_a_bare_server_gets_its_v1(typed: str, url: str) -> None:
    assert openai_base_url(typed) == url


@pytest.mark.parametrize("typed", ["h:8000", "ftp://h", "http://", ""])
def test_what_is_no_address_is_refused(typed: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an address"):
        openai_base_url(typed)
