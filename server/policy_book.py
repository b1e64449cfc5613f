"""The policies in force: layers put together, files read again when they change, the last good one kept.

A session works under up to four layers, each of which can only tighten: the organisation's file, the policy it names,
the policies of those who spawned it, and the tools that were asked for. The book is asked at every decision, so a
file that was tightened holds for turns that run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from policies import PRESETS, Limits, Policy, PolicyError, combine, load_policy, policy_names
from server.errors import ErrorCode, RookeryError
from server.models import SessionRecord

log = structlog.get_logger(__name__)

ORGANISATION: Final = "organisation"
"""Name of the file whose rules hold for every session, whatever policy it names."""

MAX_KEPT: Final = 256
"""Effective policies kept compiled; beyond that they are put together again."""

Link = tuple[str, tuple[str, ...] | None]
"""One session's own part in its layers: the policy that it names (with a role, if any), and the tools asked for."""

Stamp = tuple[tuple[str, int, int, int] | None, ...]
"""What tells that a file has changed: for each place where it may lie, its inode, size and time of change."""


@dataclass
class _Known:
    """A file as it was read last."""

    stamp: Stamp
    policy: Policy | None
    """The last good one; None for a file that is not there."""
    fault: PolicyError | None = None


@dataclass(frozen=True)
class Effective:
    """The policy in force and, while some file of it is broken, what is wrong: then the last good one holds."""

    policy: Policy
    fault: str | None = None


class PolicyBook:
    """Reads policies by name and puts layers together.

    Args:
        directory: where the user's own policies lie, if anywhere.
        default: name of the policy of a session that names none.
    """

    def __init__(self, directory: Path | None, default: str) -> None:
        self._directory = directory
        self._default = default
        self._known: dict[str, _Known] = {}
        self._effective: dict[tuple[Link, ...], tuple[tuple[Policy | None, ...], Policy]] = {}

    def named(self, name: str | None) -> Policy:
        """What a session would work under that names this policy and asks for no tools.

        Raises:
            RookeryError: ``invalid_argument``, naming the policies that there are or the fault in the file.
        """
        return self.effective(((name or self._default, None),)).policy

    def names(self) -> tuple[str, ...]:
        """Every policy that a session may name: presets first.

        Raises:
            RookeryError: ``invalid_argument``: the directory cannot be read.
        """
        try:
            return tuple(name for name in policy_names(self._directory) if name != ORGANISATION)
        except PolicyError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"policy: {error}") from error

    def of(self, session: SessionRecord) -> Effective:
        """What a session works under now.

        Raises:
            RookeryError: ``invalid_argument``: a policy of it is gone or broken, and was never read by this process.
        """
        return self.effective(lineage(session))

    def effective(self, links: tuple[Link, ...]) -> Effective:
        """The meet of the organisation's policy with those of a line of sessions, each spawned by the one before.

        Raises:
            RookeryError: as :meth:`of`.
        """
        try:
            organisation, faults = self._organisation()
            named: list[Policy | None] = [organisation]
            for link, _ in links:
                name, _ = parse_name(link)
                policy, fault = self._read(name, partial(load_policy, name, self._directory))
                named.append(policy)
                faults += fault
            known = self._effective.get(links)
            if known is None or any(one is not two for one, two in zip(known[0], named, strict=True)):
                if len(self._effective) >= MAX_KEPT:
                    self._effective.clear()
                known = self._effective[links] = (tuple(named), _combined(links, organisation, named[1:]))
        except PolicyError as error:
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"policy: {error}") from error
        return Effective(known[1], "; ".join(faults) or None)

    def _organisation(self) -> tuple[Policy | None, list[str]]:
        if self._directory is None:
            return None, []
        directory = self._directory

        def read() -> Policy | None:
            there = any((directory / f"{ORGANISATION}{suffix}").exists() for suffix in (".yaml", ".yml"))
            return load_policy(ORGANISATION, directory) if there else None

        return self._read(ORGANISATION, read)

    def _read(self, name: str, load: Callable[[], Policy | None]) -> tuple[Policy | None, list[str]]:
        """A policy, read anew if its file has changed, with the fault of a file that is broken now.

        Raises:
            PolicyError: the file is broken and no good one is known.
        """
        stamp = self._stamp(name)
        known = self._known.get(name)
        if known is None or known.stamp != stamp:
            known = self._known[name] = self._load(name, stamp, load, known)
        if known.fault is None:
            return known.policy, []
        if known.policy is None:
            raise known.fault
        return known.policy, [f"{known.fault.message} (the policy as it was before stays in force)"]

    def _load(self, name: str, stamp: Stamp, load: Callable[[], Policy | None], before: _Known | None) -> _Known:
        try:
            policy = load()
        except PolicyError as error:
            log.warning("policy is broken", policy=name, error=str(error), kept=before is not None)
            return _Known(stamp, None if before is None else before.policy, error)
        if before is not None:
            log.info("policy was read again", policy=name, digest=None if policy is None else policy.digest)
            if policy is None and before.policy is not None:
                # A file of everybody's rules that vanishes must not free everybody: its end is said by a restart.
                fault = PolicyError("the file is gone", file=f"{name}.yaml", remedy="restart the server to do without")
                return _Known(stamp, before.policy, fault)
        return _Known(stamp, policy)

    def _stamp(self, name: str) -> Stamp:
        if self._directory is None or name in PRESETS:
            return ()
        return tuple(_stamp_of(self._directory / f"{name}{suffix}") for suffix in (".yaml", ".yml"))


def parse_name(name: str) -> tuple[str, str | None]:
    """A policy's name and the role in it: ``reviewers@reader`` is the role ``reader`` of ``reviewers``."""
    policy, at, role = name.partition("@")
    return policy, role if at else None


def lineage(session: SessionRecord) -> tuple[Link, ...]:
    """A session's own part in its layers after those of its ancestors."""
    return (*(session.parent_policies or ()), (session.policy, session.tools))


def tightest(limit: float | None, other: float | None) -> float | None:
    """The smaller of two limits of which each may be absent."""
    return other if limit is None else limit if other is None else min(limit, other)


def check_model(policy: Policy, model: str | None) -> None:
    """Refuse a model that a layer does not let sessions use.

    Raises:
        RookeryError: ``invalid_argument``.
    """
    if model is not None and not policy.permits_model(model):
        raise RookeryError(
            ErrorCode.INVALID_ARGUMENT,
            f"model: the policy {policy.name} does not allow this model, only {policy.models}; use a full model name.",
        )


def turns_of(limits: Limits, asked: int | None) -> int | None:
    """The model turns that one prompt may take."""
    bound = tightest(limits.turns, asked)
    return None if bound is None else int(bound)


def _combined(links: tuple[Link, ...], organisation: Policy | None, named: list[Policy | None]) -> Policy:
    policy: Policy | None = None
    for (name, tools), profile in zip(links, named, strict=True):
        own = combine(organisation=organisation, profile=profile)
        role = parse_name(name)[1]
        if role is not None:
            own = own.acting_as(role)
        policy = combine(profile=own, parent=policy)
        if tools is not None:
            policy = policy.restricted_to(tools)
        policy = replace(policy, name=name)
    assert policy is not None
    return policy


def _stamp_of(path: Path) -> tuple[str, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return path.name, found.st_ino, found.st_size, found.st_mtime_ns
