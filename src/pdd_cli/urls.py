"""Addresses as people type them."""

from __future__ import annotations

from urllib.parse import urlsplit

from pdd_core.errors import ConfigurationError


def openai_base_url(url: str) -> str:
    """Return `url` as an OpenAI client wants it: a bare server gets ``/v1``.

    Raises:
        ConfigurationError: it is no http address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ConfigurationError(f"{url!r} is not an address such as http://host:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
