"""The connections to the store, by the package `redis`, which speaks to Valkey as well."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from pydantic import SecretStr

SCHEMES = ("redis://", "rediss://", "unix://")
CONNECT_S = 2.0
"""Longest wait for a connection."""
COMMAND_S = 5.0
"""Longest wait for the answer to a command, or for a free connection."""
CONNECTIONS = 16


def check_store_url(url: object) -> None:
    """Check ``additional_config.pdd.store`` without connecting. No message shows the URL: it may have a password.

    Raises:
        ConfigurationError: it cannot be read, or the package `redis` is not installed.
    """
    wrong = ConfigurationError(
        f"additional_config.pdd.store must be a URL that begins with {', '.join(SCHEMES)}, with a host or a path, "
        "and options that the package redis knows"
    )
    if not isinstance(url, str) or not url.startswith(SCHEMES) or url in SCHEMES:
        raise wrong
    if find_spec("redis") is None:
        raise ConfigurationError(
            "additional_config.pdd.store needs the package redis: in a clone of the repository, "
            'pip install ".[fleet]"'
        )
    try:
        _pool(url, None).make_connection()
    except (ValueError, TypeError):  # their messages have pieces of the URL
        raise wrong from None


def connect(url: str, password: SecretStr | None) -> Any:
    """Return a ``redis.asyncio.Redis``, which connects with its first command. A password in the URL wins."""
    from redis.asyncio import Redis

    return Redis.from_pool(_pool(url, password))


def _pool(url: str, password: SecretStr | None) -> Any:
    from redis.asyncio import BlockingConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return BlockingConnectionPool.from_url(
        url,
        password=None if password is None else password.get_secret_value(),
        max_connections=CONNECTIONS,
        timeout=COMMAND_S,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=COMMAND_S,
        retry=Retry(NoBackoff(), 1),  # an idle connection that the server has closed; `SharedStore` does the rest
        protocol=2,  # the same with every version of either server
    )
