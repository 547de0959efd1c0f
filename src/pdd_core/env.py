"""Every environment variable of this project.

Nothing else reads ``PDD_*`` variables, except the command line: `--api-key` also reads PDD_CLOUD_API_KEY, and
`--api-key-file` PDD_CLOUD_API_KEY_FILE.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, TomlConfigSettingsSource

from pdd_core.errors import ConfigurationError
from pdd_core.key_file import one_key
from pdd_core.llama_params import LlamaParams, problem
from pdd_core.optin import TENANT_PATTERN
from pdd_core.patience import Patience
from pdd_core.planner.cost import GPU_HOUR_PRICE
from pdd_core.refinement.guard import THRESHOLD
from pdd_core.refinement.target import RefineTarget
from pdd_core.session_id import SESSION_HEADER, check_session_header

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_settings import PydanticBaseSettingsSource


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdd-device"


class Env(BaseSettings):
    """``PDD_*`` variables of both sides, read when the object is made."""

    model_config = SettingsConfigDict(env_prefix="PDD_", extra="ignore")

    cache_dir: Path = Field(default_factory=_default_cache)
    """PDD_CACHE_DIR: the folder for prepared models and what the planner learnt. Unset: `pdd-device` in the user's
    cache folder."""
    policies: str | None = None
    """PDD_POLICIES: names of the policy plugins to load, comma-separated; unset loads all, empty loads none."""
    strict: bool = False
    """PDD_STRICT: a failing policy plugin is an error instead of a warning."""
    cloud_api_key: SecretStr | None = None
    """PDD_CLOUD_API_KEY: the API key of the cloud."""
    store_password: SecretStr | None = None
    """PDD_STORE_PASSWORD: the password of the shared store. vLLM logs its arguments, so it is better here than in
    `store`."""

    def allowed_policies(self) -> list[str] | None:
        """Names in PDD_POLICIES; None when it is unset."""
        if self.policies is None:
            return None
        return [name.strip() for name in self.policies.split(",") if name.strip()]


class ServeSettings(BaseSettings, LlamaParams):
    """The settings of ``pdd-device serve``, from flags, or else ``PDD_*`` variables, a TOML file, the defaults.

    Those of llama.cpp are the fields of `LlamaParams`, each a setting of its own.
    In the environment, the fields of `patience` are ``PDD_PATIENCE__FIRST_TOKEN_S`` and so on; in a file, a table.
    """

    model_config = SettingsConfigDict(env_prefix="PDD_", env_nested_delimiter="__", extra="forbid")

    gguf: str = "demo"
    """PDD_GGUF: the GGUF file of the device's model, or ``demo`` for the demo model."""
    cloud_url: str | None = None
    """PDD_CLOUD_URL: the base URL of the cloud, ``http://host:port/v1``. Unset: the device answers alone."""
    cloud_api_key: SecretStr | None = None
    """PDD_CLOUD_API_KEY: the API key of the cloud."""
    cloud_api_key_file: Path | None = None
    """PDD_CLOUD_API_KEY_FILE: a file that holds this key, in one line; instead of `cloud_api_key`."""
    cloud_model: str | None = None
    """PDD_CLOUD_MODEL: the name of the model in the cloud. Unset: the model that the cloud serves."""
    cloud_tenant: str | None = Field(default=None, pattern=TENANT_PATTERN)
    """PDD_CLOUD_TENANT: the tenant to name to the cloud, if the cloud has ceilings per tenant:
    docs/policies.md#tenants."""
    session_header: str = SESSION_HEADER
    """PDD_SESSION_HEADER: the header by which a router keeps a conversation on one replica. Each conversation has
    a value of its own; a client can send one with its request. Empty: no such header."""
    host: str = "127.0.0.1"
    """PDD_HOST: the address to listen on."""
    port: int = Field(default=8090, ge=0, le=65535)
    """PDD_PORT: the port to listen on; 0 takes a free port."""
    api_key: SecretStr | None = None
    """PDD_API_KEY: the key that clients must send. Unset: everyone who reaches the port can use the server. For
    this and the next four see docs/server.md#who-may-use-it."""
    api_key_file: Path | None = None
    """PDD_API_KEY_FILE: a file that holds this key, in one line; instead of `api_key`."""
    allow_no_key: bool = False
    """PDD_ALLOW_NO_KEY: listen without a key on an address that other machines reach."""
    allow_hosts: tuple[str, ...] = ()
    """PDD_ALLOW_HOSTS: names by which clients may call a server without a key, besides its addresses and
    `localhost`, as a JSON list such as `["device.example"]`."""
    max_connections: PositiveInt = 256
    """PDD_MAX_CONNECTIONS: connections at a time. Clients of further ones get a 503. There may be fewer, if the
    process has not enough file descriptors for so many."""
    allow_origins: tuple[str, ...] = ()
    """PDD_ALLOW_ORIGINS: origins of web pages that may use the server (CORS), as a JSON list such as
    `["https://chat.example"]`, or `["*"]`."""
    ui: bool = True
    """PDD_UI: serve a page with a chat at ``/``, and one with the server's state at ``/status``. Off with the flag
    ``--no-ui``."""
    model_name: str | None = None
    """PDD_MODEL_NAME: the model name that clients see. Unset: the name of the model file."""
    rate: Literal["auto", "unlimited"] | PositiveFloat = "auto"
    """PDD_RATE: tokens per second at which streamed answers are shown. ``auto``: nine tenths of the device's own
    decode rate, so that the take-over does not show. ``unlimited``: each token as it comes."""
    pacing: str = "adaptive"
    """PDD_PACING: how tokens are paced: ``adaptive``, ``fixed``, ``ewma``, ``reading`` or ``unlimited``:
    docs/hooks.md#pacing."""
    decode_budget: Literal["auto"] | PositiveInt = "auto"
    """PDD_DECODE_BUDGET: tokens that the cloud may decode before the device goes on. ``auto``: as many as last
    until the device is ready, by the planner. A number: a handoff each time, with so many tokens."""
    plan: Literal["auto", "off", "handoff", "cloud", "device"] = "auto"
    """PDD_PLAN: who makes an answer. ``auto``: the planner decides for each answer. ``handoff``, ``cloud`` or
    ``device``: always so. ``off``: always a handoff, with the budget of the base formula. For
    this and the next four see docs/planner.md#settings."""
    stall_probability: float = Field(default=0.01, gt=0, lt=1)
    """PDD_STALL_PROBABILITY: share of answers whose user may wait at the handoff."""
    ttft_target_s: PositiveFloat = 0.5
    """PDD_TTFT_TARGET_S: seconds within which an answer that the device makes alone has to begin."""
    must_begin_in_cloud: bool = False
    """PDD_MUST_BEGIN_IN_CLOUD: begin every answer in the cloud, as long as there is a cloud."""
    plan_file: Path | None = None
    """PDD_PLAN_FILE: a file with settings and profiles from ``pdd-device plan``. Other settings win over it."""
    refine: str | float = "off"
    """PDD_REFINE: how much of a prompt the device reads, while the cloud chooses which tokens: ``off`` (all),
    ``auto`` (less if a handoff needs it), a share such as 0.25, ``512 tokens``, ``2 s`` (what the device reads in
    this time) or ``context`` (what fits): docs/server.md#refined-prompts."""
    kv: Literal["off", "auto", "always"] = "off"
    """PDD_KV: whether the device loads the cloud's KV cache of the prompt, instead of reading all of the prompt.
    ``off``: never. ``auto``: in the handoffs in which the planner finds it worth its bytes. ``always``: in every
    handoff with the whole prompt. For this and the next four see docs/planner.md#cells."""
    kv_price_per_gb: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """PDD_KV_PRICE_PER_GB: what 10^9 bytes from the cloud cost, in the currency of `gpu_hour_price`."""
    kv_metered: bool = False
    """PDD_KV_METERED: the link is metered: ``auto`` then loads no KV cache."""
    gpu_hour_price: PositiveFloat = GPU_HOUR_PRICE
    """PDD_GPU_HOUR_PRICE: what an hour of one of the cloud's engines costs, all of its GPUs together, in any
    currency. Only its ratio to `kv_price_per_gb` matters."""
    gpu_kv_tokens: PositiveInt | None = None
    """PDD_GPU_KV_TOKENS: tokens that such an engine's KV cache holds. Unset: what the plan file's cloud holds, or
    else 400,000."""
    guard_nats: PositiveFloat = THRESHOLD
    """PDD_GUARD_NATS: by how many nats per token the device may find the cloud's tokens less likely after a
    refined prompt. Above that, the device reads the whole prompt. A model quantised to 4 bits needs more:
    docs/refinement.md#quantised-devices."""
    max_queue: int = Field(default=8, ge=0)
    """PDD_MAX_QUEUE: answers that may wait for the device, besides the `parallel` that it makes. More are refused.
    With a cloud, they begin there meanwhile."""
    max_streams: int = Field(default=16, ge=0)
    """PDD_MAX_STREAMS: streams that are kept for clients whose connection is lost. The oldest that has ended makes
    room for another. 0: none, so a client that leaves always stops its answer. For this and the next two see
    docs/server.md#lost-connections."""
    stream_mib: PositiveInt = 4
    """PDD_STREAM_MIB: MiB that are kept of each such stream, counted from the newest."""
    stream_ttl_s: PositiveFloat = 300.0
    """PDD_STREAM_TTL_S: seconds without a reader, after which the answer of such a stream is given up. A stream
    that has ended is forgotten then."""
    grace_s: float = Field(default=5.0, ge=0)
    """PDD_GRACE_S: seconds in which answers in flight can finish on Ctrl-C or SIGTERM."""
    tracing: bool = False
    """PDD_TRACING: make OpenTelemetry spans of each answer, in its client's trace: docs/tracing.md."""
    patience: Patience = Patience()
    """PDD_PATIENCE__*: time limits and retry budgets, each in a row of its own below."""

    @field_validator("refine", mode="before")
    @classmethod
    def _readable_refine(cls, value: object) -> object:
        RefineTarget.parse(value)  # before pydantic makes 1.0 of a file's true
        return value

    @field_validator("session_header")
    @classmethod
    def _possible_header(cls, value: str) -> str:
        return check_session_header(value)

    @property
    def refine_target(self) -> RefineTarget:
        """`refine`, parsed."""
        return RefineTarget.parse(self.refine)

    @property
    def llama(self) -> LlamaParams:
        """The settings of llama.cpp alone."""
        return LlamaParams.of(**self.model_dump(include=set(LlamaParams.model_fields)))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings calls by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags win over the environment, and the environment wins over the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, file: Path | None, flags: Mapping[str, object]) -> ServeSettings:
        """Read all sources.

        Raises:
            ConfigurationError: a name that does not exist, or a value that cannot work; the message names it.
        """
        config = SettingsConfigDict(**{**cls.model_config, "toml_file": file})
        with_file = type(cls.__name__, (cls,), {"model_config": config, "__module__": cls.__module__})
        try:
            settings: ServeSettings = with_file(**flags)
            if settings.plan_file is not None:
                planned = _planned(settings.plan_file)
                settings = with_file(**{**planned, **settings.model_dump(exclude_unset=True), **flags})
        except ValidationError as error:
            raise ConfigurationError("; ".join(problem(one) for one in error.errors())) from error
        except (OSError, ValueError, RecursionError) as error:  # tomllib has more than its own
            raise ConfigurationError(f"{file} cannot be read: {error}") from error
        return settings._with_keys()

    def _with_keys(self) -> ServeSettings:
        """Return the same settings with the keys that files hold."""
        keys = {}
        for name in ("api_key", "cloud_api_key"):
            given: SecretStr | None = getattr(self, name)
            plain = None if given is None else given.get_secret_value()
            plain = one_key(name, plain, getattr(self, f"{name}_file"))
            keys[name] = None if plain is None else SecretStr(plain)
        return self.model_copy(update=keys)


def _planned(file: Path) -> dict[str, object]:
    """Return the settings of a plan."""
    from pdd_core.planner.plan_file import PlanFile  # profiles need numpy, which reading settings does not

    return PlanFile.load(file).settings.model_dump(exclude_none=True)
