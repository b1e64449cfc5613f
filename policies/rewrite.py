"""Rewrites: the only changes that a policy makes to a call, each of which can only tighten it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from policies.hosts import HostError, parse_host


class RewriteError(ValueError):
    """A field or value that a rewrite may not set. The text says what it may."""


Given = Mapping[str, Any]
Tighten = Callable[[Given, str, Any], Any]
"""The new value of a field, from the input, the field's name and the rule's value."""


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.inf


def _cap(unset: Callable[[Given], float], *, zero_is_all: bool = False) -> Tighten:
    """At most the rule's value. ``unset`` is what the CLI takes when the field is absent."""

    def tighten(given: Given, name: str, value: Any) -> Any:
        present = given.get(name)
        current = unset(given) if present is None else _number(present)
        if math.isnan(current) or (zero_is_all and current == 0):
            current = math.inf
        return present if current <= value else value

    return tighten


def _never(given: Given, name: str, value: Any) -> Any:
    return None if given.get(name) is None else False


def _only_hosts(given: Given, name: str, value: Any) -> Any:
    present = given.get(name)
    return list(value) if not present else [host for host in present if host in value] or list(value)


def _also_hosts(given: Given, name: str, value: Any) -> Any:
    return list(dict.fromkeys([*(given.get(name) or ()), *value]))


def _timeout(given: Given) -> float:
    return 1_800_000 if given.get("run_in_background") in (True, "true") else 120_000


_SETTABLE: Final[Mapping[str, Mapping[str, tuple[str, Tighten]]]] = MappingProxyType(
    {
        "Bash": {
            "timeout": ("number", _cap(_timeout)),
            "run_in_background": ("false", _never),
            "dangerouslyDisableSandbox": ("false", _never),
        },
        "Read": {"limit": ("number", _cap(lambda given: 2000)), "allow_large": ("false", _never)},
        "Grep": {"head_limit": ("number", _cap(lambda given: 250, zero_is_all=True))},
        "Edit": {"replace_all": ("false", _never)},
        "Agent": {"run_in_background": ("false", _never)},
        "TaskOutput": {"timeout": ("number", _cap(lambda given: 30_000))},
        "WebSearch": {"allowed_domains": ("hosts", _only_hosts), "blocked_domains": ("hosts", _also_hosts)},
    }
)
"""Tool → field → what kind of value a rule may give it, and how it tightens. Defaults as CLI 2.1.330 states them in
its tool descriptions."""

_NAMES: Final = MappingProxyType({"timeout_ms": "timeout"})


def checked_settings(tools: Iterable[str], settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """A rewrite's fields under the names of the CLI.

    Raises:
        RewriteError: a field that no rewrite may set for one of the tools, or a value that does not tighten.
    """
    found: dict[str, Any] = {}
    for written, value in settings.items():
        name = _NAMES.get(written, written)
        for tool in tools:
            settable = _SETTABLE.get(tool, {})
            if name not in settable:
                known = ", ".join(settable) or "none"
                raise RewriteError(f"{written} of {tool} cannot be set; fields of {tool} that can: {known}")
            kind = settable[name][0]
            if kind == "false" and value is not False:
                raise RewriteError(f"{written} can only be set to false")
            if kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 1):
                raise RewriteError(f"{written} needs a number of at least 1")
            if kind == "hosts":
                value = _hosts(written, value)
        found[name] = value
    return tuple(found.items())


def _hosts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise RewriteError(f"{name} needs a list of host names")
    try:
        return tuple(parse_host(str(host)) for host in value)
    except HostError as error:
        raise RewriteError(f"{name}: {error}") from None


def apply_settings(tool: str, given: Given, settings: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The input after a rewrite; equal to ``given`` when it was tight enough."""
    changed = dict(given)
    for name, value in settings:
        entry = _SETTABLE.get(tool, {}).get(name)
        if entry is None:
            continue
        tightened = entry[1](changed, name, value)
        if tightened is not None:
            changed[name] = tightened
    return changed
