"""Every environment variable of this project.

Nothing else reads a ``PDD_*`` name, but the command line, whose help names PDD_CLOUD_API_KEY beside `--api-key`.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdd-device"


class Env(BaseSettings):
    """``PDD_*`` variables; read when made."""

    model_config = SettingsConfigDict(env_prefix="PDD_", extra="ignore")

    cache_dir: Path = Field(default_factory=_default_cache)
    """PDD_CACHE_DIR: prepared models."""
    policies: str | None = None
    """PDD_POLICIES: comma-separated policy plugins to load; unset loads all, empty loads none."""
    strict: bool = False
    """PDD_STRICT: a failing policy plugin is an error instead of a warning."""
    cloud_api_key: SecretStr | None = None
    """PDD_CLOUD_API_KEY: the key for the cloud."""

    def allowed_policies(self) -> list[str] | None:
        """Names in PDD_POLICIES; None when it is unset."""
        if self.policies is None:
            return None
        return [name.strip() for name in self.policies.split(",") if name.strip()]
