"""What callers ask of the registry, checked once, here: a value that passes can be acted on.

A value that does not pass is an ``invalid_argument`` whose message names the argument and the remedy.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

MAX_PROMPT_BYTES: Final = 1_000_000
"""Longest prompt in UTF-8 bytes. The Messages API takes 32 MB, but a prompt is typed or delegated text: files go
into the workspace."""

MAX_ARGUMENT_BYTES: Final = 100_000
"""Longest text that is handed to the agent's command line; Linux takes at most 131,072 bytes (MAX_ARG_STRLEN)."""

MAX_LABELS: Final = 32

Prompt = Annotated[str, StringConstraints(min_length=1)]
Label = Annotated[str, StringConstraints(max_length=200)]

MODEL_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,127}")
TOOL_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}")
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


def checked_prompt(value: str) -> str:
    """A prompt that can be sent.

    Raises:
        ValueError: it is empty, too long, or no valid Unicode; the message completes a sentence about it.
    """
    if not value.strip():
        raise ValueError("is empty: say what the agent should do")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_PROMPT_BYTES:
        raise ValueError(
            f"is longer than {MAX_PROMPT_BYTES:,} bytes: put large material into the workspace as files and name them"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("holds lone surrogates, which are not text: send valid Unicode") from error
    return value


def checked_identifier(value: str | None) -> str | None:
    """A name or key of the caller's own.

    Raises:
        ValueError: it is none; the message completes a sentence about it.
    """
    if value is not None and not IDENTIFIER.fullmatch(value):
        raise ValueError("is not an identifier: use letters, digits and _ . : - only, at most 128")
    return value


def checked_schema(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema that an agent's answer can be asked to meet.

    Raises:
        ValueError: it is no valid schema, is too long, or does not describe an object, which the answer always is.
    """
    # Takes longer to import than all the rest here.
    from jsonschema import Draft202012Validator, SchemaError

    if len(json.dumps(value)) > MAX_ARGUMENT_BYTES:
        raise ValueError(f"is longer than {MAX_ARGUMENT_BYTES:,} bytes: make it smaller")
    if value.get("type") != "object":
        raise ValueError('must have "type": "object" at its root: wrap what you want into an object')
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "its root"
        raise ValueError(f"is not a valid JSON Schema: {where[:200]}: {error.message[:200]}") from error
    return value


class Request(BaseModel):
    """Base of all requests: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class WorkspaceSource(Request):
    """What the workspace holds at the start: exactly one of the three, or nothing."""

    path: str | None = Field(default=None, description="host directory to copy in (below ROOKERY_WORKSPACE_ROOTS)")
    git: str | None = Field(default=None, description="https URL to clone (a host of ROOKERY_GIT_HOSTS)")
    ref: str | None = Field(default=None, description="branch, tag or commit for git")
    files: dict[str, str] | None = Field(default=None, description="relative path → text content")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in ("path", "git", "files") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("needs exactly one of path, git and files")
        if self.ref is not None and self.git is None:
            raise ValueError("ref goes with git only")
        return self


class SpawnRequest(Request):
    """A new session with its first prompt."""

    prompt: str = Field(description="the task, with all that the agent must know; it sees nothing of the caller")
    request_id: str | None = Field(
        default=None, max_length=200, description="key of your own: a repeated spawn answers with the first session"
    )
    title: str = Field(default="", max_length=200, description="short name, for people")
    model: str | None = Field(default=None, description="model name or alias; default: the server's setting")
    system_prompt: str | None = Field(
        default=None, max_length=MAX_ARGUMENT_BYTES, description="replaces the agent's own system prompt"
    )
    policy: str | None = Field(default=None, description="its policy: a name, or name@role; default: the server's")
    tools: tuple[str, ...] | None = Field(
        default=None, max_length=100, description="narrows the agent's tools to these, as in Read, Write, Bash"
    )
    max_turns: int | None = Field(default=None, ge=1, le=10_000, description="most model requests in one turn")
    budget_usd: float | None = Field(default=None, gt=0, le=100_000, description="total cap of the session in dollars")
    budget_tokens: int | None = Field(
        default=None, gt=0, le=10**15, description="total cap of the session in tokens of all kinds together"
    )
    workspace: WorkspaceSource | None = Field(default=None, description="what the workspace holds at the start")
    sandbox: Literal["bubblewrap", "e2b"] | None = Field(
        default=None, description="where it runs: on the server's machine, or in E2B's cloud; default: the server's"
    )
    output_schema: dict[str, Any] | None = Field(
        default=None, description="JSON Schema that the agent's answer must meet; see `structured_output`"
    )
    labels: dict[Label, Label] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="name → value, to find and to sum sessions by"
    )

    _prompt = field_validator("prompt")(checked_prompt)

    @field_validator("system_prompt")
    @classmethod
    def _system_prompt(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode("utf-8", "surrogatepass")) > MAX_ARGUMENT_BYTES:
            raise ValueError(f"is longer than {MAX_ARGUMENT_BYTES:,} bytes: put long material into the workspace")
        return value

    @field_validator("output_schema")
    @classmethod
    def _output_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else checked_schema(value)

    @field_validator("model")
    @classmethod
    def _model(cls, value: str | None) -> str | None:
        if value is not None and not MODEL_NAME.fullmatch(value):
            raise ValueError("is not a model name: use letters, digits and . _ - : / only, as in claude-sonnet-5")
        return value

    @field_validator("policy")
    @classmethod
    def _policy(cls, value: str | None) -> str | None:
        if value is not None and not all(IDENTIFIER.fullmatch(part) for part in value.split("@", 1)):
            raise ValueError("is not an identifier: give a policy's name, or name@role for a role in it")
        return value

    @field_validator("request_id")
    @classmethod
    def _identifier(cls, value: str | None) -> str | None:
        return checked_identifier(value)

    @field_validator("tools")
    @classmethod
    def _tools(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        # The policy room is not needed before the first call.
        from policies.catalogue import TOOLS, canonical_name, is_known

        for name in value or ():
            if not TOOL_NAME.fullmatch(name):
                raise ValueError(f"holds {name[:40]!r}, which is not a tool name, as Read or Bash are")
            if not is_known(canonical_name(name)):
                raise ValueError(f"holds {name[:40]!r}, which no agent has; there are {', '.join(sorted(TOOLS))}")
        return value


class PromptRequest(Request):
    """A further prompt for a session."""

    prompt: str = Field(description="what the agent should do next")
    request_id: str | None = Field(
        default=None, max_length=200, description="key of your own: a repeated call answers with the first turn"
    )
    budget_usd: float | None = Field(default=None, gt=0, le=100_000, description="new total cap of the session")
    budget_tokens: int | None = Field(
        default=None, gt=0, le=10**15, description="new total cap of the session in tokens of all kinds together"
    )

    _prompt = field_validator("prompt")(checked_prompt)

    @field_validator("request_id")
    @classmethod
    def _identifier(cls, value: str | None) -> str | None:
        return checked_identifier(value)


class ListRequest(Request):
    """Which sessions to list, newest first."""

    state: str | None = Field(default=None, description="only sessions in this state")
    labels: dict[Label, Label] = Field(
        default_factory=dict, max_length=MAX_LABELS, description="only sessions with all of these labels"
    )
    parent_id: str | None = Field(
        default=None, max_length=128, description="only sessions that this one spawned, and forks of it"
    )
    limit: int = Field(default=20, ge=1, le=200, description="most sessions to answer with")
    cursor: str | None = Field(default=None, max_length=200, description="`cursor` of the page before")


class CostRequest(Request):
    """Which costs to sum, and how."""

    session_id: str | None = Field(default=None, description="one session; without it, all of yours")
    tree: bool = Field(default=False, description="the session with all that descends from it")
    group_by: Literal["session", "model", "label", "day"] | None = Field(
        default=None, description="also sum by session, model, label or day"
    )
