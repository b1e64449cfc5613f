"""The policy language as data: what a YAML file may say. Meaning is given to it in :mod:`policies.rules`.

Texts are texts: a number or a bare ``no`` where a text is meant is refused, not converted.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

MAX_RULES: Final = 1000
_DURATION: Final = re.compile(r"(\d{1,9})\s*(ms|s|m|h|d)")
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def parse_duration(value: object) -> object:
    """``90s``, ``10m``, ``2h`` or ``1d`` as seconds.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, str) and (given := _DURATION.fullmatch(value)) is not None:
        return float(given[1]) * _SECONDS[given[2]]
    raise ValueError("is not a duration: write it like 90s, 10m, 2h or 1d")


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Text = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_as_list), Field(min_length=1, max_length=200)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,99}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]


class Model(BaseModel):
    """Base of all parts of a policy: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LimitsModel(Model):
    """Upper bounds of a session. An absent one bounds nothing here; of several layers the smallest holds."""

    usd: Annotated[float, Field(gt=0, strict=False)] | None = None
    turns: Annotated[int, Field(ge=1)] | None = None
    wall: Seconds | None = None
    depth: Annotated[int, Field(ge=0)] | None = None
    children: Annotated[int, Field(ge=0)] | None = None
    tool_calls_per_min: Annotated[int, Field(ge=1)] | None = None


class RoleModel(Model):
    """A role: the only tools that an agent acting in it may use."""

    tools: Texts


class AfterModel(Model):
    """The rule holds once a tool was used."""

    tool: Text
    within: Literal["session", "turn"] | Seconds = "session"


class CountModel(Model):
    """The rule holds once a tool was used so often, calls in flight included and this one not."""

    tool: Text
    at_least: Annotated[int, Field(ge=1)]
    within: Literal["session", "turn"] | Seconds = "session"


def _as_token_lists(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return tuple((item,) if isinstance(item, str) else item for item in value)


class WhenModel(Model):
    """Conditions on a call. All that are given must hold."""

    argv: Annotated[
        tuple[Annotated[tuple[Text, ...], Field(min_length=1, max_length=32)], ...] | None,
        BeforeValidator(_as_token_lists),
        Field(min_length=1, max_length=32),
    ] = None
    exact: bool = False
    path: Texts | None = None
    access: Literal["read", "write"] | None = None
    cwd: Texts | None = None
    env: Texts | None = None
    domain: Texts | None = None
    input: Annotated[
        dict[Text, str | bool | int | Annotated[tuple[str | bool | int, ...], Field(strict=False)]] | None,
        Field(min_length=1),
    ] = None
    after: AfterModel | None = None
    count: CountModel | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.exact and self.argv is None:
            raise ValueError("exact goes with argv only: say which words")
        if self.access is not None and self.path is None:
            raise ValueError("access goes with path only: say which paths")
        return self


class AskModel(Model):
    """How a question is put. It always expires to a denial, and an answer is never remembered for another call."""

    ttl: Seconds = 600.0
    on_timeout: Literal["deny"] = "deny"
    remember: Literal["never"] = "never"


class HostModel(Model):
    """One host of a network rule."""

    host: Text
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], Field(min_length=1, strict=False)] = (443,)
    methods: Texts | None = None
    paths: Texts | None = None
    intercept: bool = False


class ExamplesModel(Model):
    """Calls that the rule must and must not match: checked whenever the policy is loaded."""

    match: Texts | None = None
    not_match: Texts | None = None


class RuleModel(Model):
    """One rule."""

    id: Identifier
    effect: Literal["allow", "ask", "deny", "rewrite"]
    tools: Texts | None = None
    roles: Texts | None = None
    when: WhenModel | None = None
    because: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    ask: AskModel | None = None
    set: Annotated[dict[Text, Any] | None, Field(min_length=1)] = None
    network: Annotated[tuple[HostModel, ...] | None, Field(min_length=1, max_length=500, strict=False)] = None
    advisory: bool = False
    examples: ExamplesModel | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.network is not None:
            if self.effect not in ("allow", "deny"):
                raise ValueError("a network rule can only allow or deny")
            if self.tools is not None or self.when is not None or self.roles is not None or self.examples is not None:
                raise ValueError("a network rule stands alone: put tools, roles, when and examples into another rule")
        elif self.tools is None:
            raise ValueError("the rule names no tools: add tools (or network)")
        if (self.effect == "rewrite") != (self.set is not None):
            raise ValueError("set belongs to rewrite rules, and every rewrite rule needs it")
        if self.ask is not None and self.effect != "ask":
            raise ValueError("ask belongs to rules with effect ask")
        if self.advisory and self.effect not in ("deny", "ask"):
            raise ValueError("advisory belongs to rules with effect deny or ask")
        return self


class PolicyModel(Model):
    """One policy file."""

    version: Literal[1]
    id: Identifier | None = None
    description: Annotated[str, StringConstraints(max_length=2000)] | None = None
    extends: Name | None = None
    default: Literal["deny", "ask"] | None = None
    unprovable: Literal["deny", "ask"] | None = None
    limits: LimitsModel | None = None
    roles: Annotated[dict[Name, RoleModel], Field(max_length=100)] | None = None
    models: Texts | None = None
    rules: Annotated[tuple[RuleModel, ...], Field(max_length=MAX_RULES, strict=False)] = ()
