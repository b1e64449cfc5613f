"""Settings: the ``ROOKERY_*`` variables, and the credentials of the field under their own names.

Loaded once by the composition root and handed down; nothing below reads the environment.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.home import default_home


class SandboxKind(StrEnum):
    BUBBLEWRAP = "bubblewrap"
    E2B = "e2b"


class UpstreamKind(StrEnum):
    ANTHROPIC = "anthropic"
    SCRIPTED = "scripted"


DollarCap = Annotated[float | None, Field(gt=0, le=100_000)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}$")]
TokenCap = Annotated[int | None, Field(gt=0, le=10**15)]


TRUSTED_URL: Final = r"^(https://|http://(localhost|127\.0\.0\.1|\[::1\])[:/])"
"""URLs whose answers can be believed: by TLS, or of this machine."""


def split_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Settings(BaseSettings):
    """All settings with their bounds. Durations are in seconds, sizes in MiB, money in US dollars."""

    model_config = SettingsConfigDict(
        env_prefix="ROOKERY_", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    home: Path = Field(default_factory=default_home, description="where sessions, files and the database live")
    database_url: str | None = Field(default=None, description="SQLAlchemy URL; default: SQLite in the home")
    sandbox: SandboxKind = Field(default=SandboxKind.BUBBLEWRAP, description="which provider makes sandboxes")
    upstream: UpstreamKind = Field(default=UpstreamKind.ANTHROPIC, description="the model: anthropic, or scripted")
    scenario: Path | None = Field(default=None, description="JSON scenario that the scripted model plays by default")
    cli_path: Path | None = Field(default=None, description="another Claude Code CLI than the bundled one")
    model: str | None = Field(default=None, description="default model of new sessions; else the CLI's own default")
    policy: str = Field(default="workspace", description="default policy of new sessions")
    policy_dir: Path | None = Field(default=None, description="directory of YAML policies, named by their file")
    default_budget_usd: float = Field(default=5.0, gt=0, le=100_000, description="cap of a session that names none")
    default_budget_tokens: TokenCap = Field(default=None, description="the same in tokens of all kinds")
    tree_budget_usd: DollarCap = Field(default=None, description="cap of a session with all that descends from it")
    tree_budget_tokens: TokenCap = Field(default=None, description="the same in tokens")
    principal_budget_usd: DollarCap = Field(default=None, description="cap of all sessions of one principal")
    principal_budget_tokens: TokenCap = Field(default=None, description="the same in tokens")
    daily_budget_usd: DollarCap = Field(default=None, description="cap of one principal's day (UTC)")
    daily_budget_tokens: TokenCap = Field(default=None, description="the same in tokens")
    prices: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description='JSON: model → {"input_usd": …, "output_usd": …} for a million tokens, before the price table',
    )
    fallback_models: Annotated[tuple[ModelName, ...], NoDecode] = Field(
        default=(), description="models (comma separated) that answer in the place of one that is overloaded"
    )
    turn_retries: int = Field(
        default=2, ge=0, le=10, description="how often a turn goes on by itself after the model API failed"
    )
    sandbox_usd_per_s: float = Field(default=0.0, ge=0, le=1, description="price of a second of a running sandbox")
    turn_timeout_s: float = Field(default=3600, gt=0, le=86_400, description="longest turn")
    background_s: float = Field(default=30, ge=0, le=3600, description="how long background tasks may outlive a turn")
    approval_hot_s: float = Field(default=60, ge=0, le=3600, description="how long an approval keeps its agent alive")
    approval_ttl_s: float = Field(default=86_400, gt=0, le=2_592_000, description="an approval expires to deny after")
    idle_s: float = Field(default=300, gt=0, le=86_400, description="an idle session gives up its process after this")
    max_sessions: int = Field(default=32, ge=1, le=10_000, description="sessions that may be at work at once")
    principal_sessions: int | None = Field(
        default=None, ge=1, le=1_000_000, description="sessions of one principal that have not ended"
    )
    principal_turns: int | None = Field(default=None, ge=1, le=10_000, description="turns of one principal at once")
    queue_s: float = Field(default=10, ge=0, le=600, description="how long a prompt waits for a place")
    max_depth: int = Field(default=4, ge=0, le=64, description="how deep agents that spawn agents may nest")
    max_children: int = Field(default=16, ge=0, le=1000, description="agents of one session that may work at once")
    max_wait_s: float = Field(default=50, gt=0, le=3600, description="longest wait inside one tool call")
    toolsets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("all",), description="which tools are offered (comma separated): all, simple, or themes"
    )
    read_only: bool = Field(default=False, description="offer only tools that change nothing")
    memory_mb: int = Field(default=2048, ge=256, le=1_048_576, description="memory of one sandbox")
    processes: int = Field(default=256, ge=16, le=65_536, description="processes and threads in one sandbox")
    cpus: float = Field(default=2.0, gt=0, le=1024, description="CPU cores of one sandbox")
    disk_mb: int = Field(default=4096, ge=16, le=10_485_760, description="size of one workspace")
    retention_days: float = Field(default=30, gt=0, le=36_500, description="ended sessions are deleted after this")
    checkpoints_kept: int = Field(default=50, ge=2, le=100_000, description="latest checkpoints kept of each session")
    warm: int = Field(default=1, ge=0, le=64, description="started agents kept ready")
    workspace_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="host directories (separated by ':') below which workspaces may be copied from"
    )
    git_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("github.com", "gitlab.com"), description="hosts (comma separated) to clone workspaces from"
    )
    hooks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Python functions (comma separated, Event=package.module:function) that may object"
    )
    hook_timeout_s: float = Field(default=5, gt=0, le=20, description="longest that one of these functions may take")
    auth: bool = Field(default=False, description="whether HTTP asks every client for a bearer token")
    oauth_issuer: str | None = Field(
        default=None, pattern=TRUSTED_URL, description="URL of the OAuth issuer whose tokens are good too"
    )
    oauth_audience: str | None = Field(default=None, description="what they call this server; default: its public URL")
    oauth_jwks_url: str | None = Field(
        default=None, pattern=TRUSTED_URL, description="where its keys are; default: what its metadata says"
    )
    requests_per_minute: int | None = Field(
        default=1200, ge=1, le=10_000_000, description="HTTP requests that each principal may make in a minute"
    )
    public_url: str | None = Field(
        default=None, pattern=r"^https?://[^/\s?#@]+/?$", description="URL by which clients reach the HTTP server"
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="origins (comma separated) whose pages may call the HTTP server from a browser"
    )
    http_connections: int = Field(default=1000, ge=1, le=100_000, description="HTTP connections at once")
    http_sessions: int = Field(default=1000, ge=1, le=100_000, description="open HTTP sessions of the older protocol")
    drain_s: float = Field(default=3, ge=0, le=3600, description="how long work under way may go on after SIGTERM")
    daemon_idle_s: float = Field(
        default=300,
        gt=0,
        le=2_592_000,
        description="the shared daemon leaves this long after its last need",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="what stderr gets")

    credential_file: Path | None = Field(
        default=None,
        description="file of lines as ANTHROPIC_API_KEY=…, read again when it changes, before the variables below",
    )
    e2b_template: str = Field(default="rookery", min_length=1, max_length=200, description="E2B template of sandboxes")
    e2b_timeout_s: int = Field(
        default=300, ge=60, le=86_400, description="an E2B sandbox without a server pauses after"
    )
    e2b_rest_s: float = Field(default=60, ge=1, le=3600, description="an E2B sandbox without an agent pauses after")
    e2b_concurrency: int = Field(default=20, ge=1, le=10_000, description="E2B sandboxes at once, by your plan")
    e2b_creations_per_s: float = Field(default=1, ge=0.05, le=1000, description="E2B creations a second, by your plan")
    e2b_warm: int = Field(default=0, ge=0, le=64, description="the same as ROOKERY_WARM in E2B, where it costs money")
    e2b_traffic: Literal["relay", "direct"] = Field(
        default="relay", description="model requests from E2B: through this host, or direct with a secret of E2B"
    )
    e2b_secret: str | None = Field(default=None, description="E2B secret with the model's key, for direct traffic")
    e2b_api_key: SecretStr | None = Field(default=None, validation_alias="E2B_API_KEY")
    e2b_api_url: str | None = Field(default=None, validation_alias="E2B_API_URL")
    e2b_sandbox_url: str | None = Field(default=None, validation_alias="E2B_SANDBOX_URL")
    e2b_domain: str | None = Field(default=None, validation_alias="E2B_DOMAIN")
    e2b_debug: bool = Field(default=False, validation_alias="E2B_DEBUG")

    anthropic_base_url: str = Field(default="https://api.anthropic.com", validation_alias="ANTHROPIC_BASE_URL")
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    anthropic_auth_token: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_AUTH_TOKEN")
    claude_code_oauth_token: SecretStr | None = Field(default=None, validation_alias="CLAUDE_CODE_OAUTH_TOKEN")

    @field_validator("home", "policy_dir", "cli_path", "scenario", "credential_file")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("workspace_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(Path(part).expanduser().absolute() for part in value.split(os.pathsep) if part)
        return value

    @field_validator("hooks", "toolsets", "fallback_models", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        return split_names(value) if isinstance(value, str) else value

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @field_validator("git_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().lower() for part in value.split(",") if part.strip())
        return value

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            pydantic.ValidationError: a variable has a value out of its bounds.
        """
        return cls()

    @property
    def store_url(self) -> str:
        """The SQLAlchemy URL of the store."""
        return self.database_url or f"sqlite:///{self.home / 'rookery.db'}"
