"""OpenAI clients that ask this machine directly: a proxy in the environment is for the way to others.

For all other hosts, the HTTP client's own rules hold: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY.

They keep no cookies: one client serves many conversations, and a cookie belongs to one of them. They follow a
redirection only to the address that they were given: a prompt goes nowhere else.
"""

from __future__ import annotations

import ipaddress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from pdd_core.errors import CloudRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    import openai

_NAMES = ("localhost", "127.0.0.1", "[::1]")


def new_client(base_url: str, **options: Any) -> openai.OpenAI:
    """Return a client of `base_url`; `options` are those of ``openai.OpenAI``."""
    import openai

    http = openai.DefaultHttpxClient(
        mounts=_direct(base_url), cookies=_no_cookies(), event_hooks={"response": [_stay]}
    )
    return openai.OpenAI(base_url=base_url, http_client=http, **options)


def new_async_client(
    base_url: str, *, http_options: Mapping[str, Any] | None = None, **options: Any
) -> openai.AsyncOpenAI:
    """Return a client of `base_url`; `options` are those of ``openai.AsyncOpenAI``, `http_options` httpx's."""
    import openai

    own = dict(http_options or {})
    hooks = {"response": [_stay_async, *own.pop("event_hooks", {}).get("response", ())]}
    http = openai.DefaultAsyncHttpxClient(
        mounts=_direct(base_url), cookies=_no_cookies(), event_hooks=hooks, **own
    )
    return openai.AsyncOpenAI(base_url=base_url, http_client=http, **options)


def is_loopback(url: str) -> bool:
    """Return whether `url` leads to this machine's loopback address, by its name or number."""
    return is_loopback_host(urlsplit(url).hostname or "")


def is_loopback_host(host: str) -> bool:
    """Return whether only this machine reaches `host`. Of names, this is certain for one alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def proxy_of(url: str) -> str | None:
    """Return host and port of the proxy that the environment has for `url`, without its password; None if none."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}").netloc.rpartition("@")[2]


def _direct(base_url: str) -> dict[str, None]:
    """Return mounts, in the HTTP client's words, by which no proxy is asked for this machine."""
    own = [urlsplit(base_url).netloc.rpartition("@")[2]] if is_loopback(base_url) else []
    return {f"all://{name}": None for name in (*_NAMES, *own)}


def _stay(response: Any) -> None:
    """Called by the HTTP client, in either of its two forms, before it follows a redirection.

    Raises:
        CloudRefused: it leads to another address. HTTPS in the place of HTTP is none.
    """
    if not response.has_redirect_location:
        return
    here, there = response.request.url, response.request.url.join(response.headers["location"])
    secured = (here.scheme, there.scheme, here.port, there.port) == ("http", "https", None, None)
    if here.host != there.host or not (secured or (here.scheme, here.port) == (there.scheme, there.port)):
        where = urlunsplit((there.scheme, there.netloc.decode("ascii"), "", "", ""))
        raise CloudRefused(
            f"the server at {here.host} redirects to another address, which gets no prompt: {where}"
        )


async def _stay_async(response: Any) -> None:
    _stay(response)


def _no_cookies() -> CookieJar:
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))
