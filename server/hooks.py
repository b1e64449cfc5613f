"""Hooks of the user: Python functions that may object to what an agent is about to do. They can only tighten.

A hook is named in ``ROOKERY_HOOKS`` as ``Event=package.module:function``; it takes one argument, the event, and
answers None (no objection), :class:`Deny` or :class:`Ask`. Whatever else it does (raise, answer something else, take
too long) is a denial. A plain function runs in a worker thread, an ``async`` one on the event loop, which it must not
block.
"""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

import anyio
import anyio.to_thread
import structlog

from server.errors import ErrorCode, RookeryError

log = structlog.get_logger(__name__)

MAX_THREADS: Final = 8
"""Plain hooks that run at once. A hook that hangs keeps its thread; when all hang, everything is denied."""


@dataclass(frozen=True)
class Deny:
    """An objection that stops it.

    Args:
        because: why, for the agent.
    """

    because: str


@dataclass(frozen=True)
class Ask:
    """An objection that a person may overrule. Of events other than ``PreToolUse`` it is a denial."""

    because: str


Answer = Deny | Ask | None


@dataclass(frozen=True)
class Subject:
    """Whose event it is.

    Args:
        session_id: the session.
        principal: whose session it is.
        turn: number of the turn.
        labels: the session's labels.
    """

    session_id: str
    principal: str
    turn: int
    labels: Mapping[str, str]


@dataclass(frozen=True)
class PreToolUse:
    """A tool call that the policy lets through, or wants asked. ``input`` is a copy: changing it changes nothing."""

    subject: Subject
    tool: str
    input: Mapping[str, Any]
    tool_use_id: str


@dataclass(frozen=True)
class PostToolUse:
    """A tool call that ran, before the agent sees its result. An objection stops the agent's turn."""

    subject: Subject
    tool: str
    input: Mapping[str, Any]
    response: Any
    tool_use_id: str


@dataclass(frozen=True)
class UserPromptSubmit:
    """A prompt that is about to begin a turn. An objection refuses it with ``policy_denied``."""

    subject: Subject
    prompt: str


@dataclass(frozen=True)
class Stop:
    """A turn that ended well. An objection withholds its answer: the outcome has ``policy_denied`` instead."""

    subject: Subject
    text: str
    structured_output: Any


HookEvent = PreToolUse | PostToolUse | UserPromptSubmit | Stop
Hook = Callable[[Any], Any]

EVENTS: Final[Mapping[str, type[HookEvent]]] = {kind.__name__: kind for kind in get_args(HookEvent)}
"""The events by the names that the setting uses."""


@dataclass(frozen=True)
class Objection:
    """What a hook had against an event.

    Args:
        hook: its dotted path.
        because: why.
        ask: whether a person may overrule it.
    """

    hook: str
    because: str
    ask: bool = False


class UserHooks:
    """The hooks of one server process.

    Args:
        hooks: event's name → dotted path and function, in the order in which they are asked.
        timeout_s: longest that one hook may take.
    """

    def __init__(self, hooks: Mapping[str, Sequence[tuple[str, Hook]]], *, timeout_s: float) -> None:
        self._hooks = hooks
        self._timeout_s = timeout_s
        self._threads: anyio.CapacityLimiter | None = None

    def any_for(self, kind: type[HookEvent]) -> bool:
        """Whether there is a hook for a kind of event."""
        return bool(self._hooks.get(kind.__name__))

    async def objection(self, event: HookEvent) -> Objection | None:
        """Ask every hook for this kind of event; the strictest objection, the first of equals."""
        found: Objection | None = None
        for path, hook in self._hooks.get(type(event).__name__, ()):
            objection = _objection(path, await self._answer(path, hook, event))
            if objection is not None and not objection.ask:
                return objection
            found = found or objection
        return found

    async def _answer(self, path: str, hook: Hook, event: HookEvent) -> object:
        self._threads = self._threads or anyio.CapacityLimiter(MAX_THREADS)
        try:
            own = copy.deepcopy(event)
            with anyio.fail_after(self._timeout_s):
                if inspect.iscoroutinefunction(hook):
                    return await hook(own)
                return await anyio.to_thread.run_sync(hook, own, abandon_on_cancel=True, limiter=self._threads)
        except TimeoutError:
            log.warning("hook took too long", hook=path)
            return Deny("A hook of this server took too long, so this is denied.")
        except Exception:
            log.exception("hook failed", hook=path)
            return Deny("A hook of this server failed, so this is denied.")


def _objection(path: str, answer: object) -> Objection | None:
    match answer:
        case None:
            return None
        case Deny(because=str() as because):
            return Objection(path, because[:2_000])
        case Ask(because=str() as because):
            return Objection(path, because[:2_000], ask=True)
        case _:
            log.warning("hook answered junk", hook=path, kind=type(answer).__name__)
            return Objection(path, "A hook of this server gave no valid answer, so this is denied.")


def load_hooks(specs: Sequence[str], *, timeout_s: float) -> UserHooks:
    """Import the hooks that a setting names.

    Args:
        specs: ``Event=package.module:function`` each.
        timeout_s: longest that one hook may take, in seconds.

    Raises:
        RookeryError: ``invalid_argument``: a name is malformed or cannot be imported. The server must not start then,
            for it would run without what its owner wants asked.
    """
    hooks: dict[str, list[tuple[str, Hook]]] = {}
    for spec in specs:
        event, _, path = spec.partition("=")
        module, _, name = path.partition(":")
        if event not in EVENTS or not module or not name:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT,
                f"ROOKERY_HOOKS: write Event=package.module:function; events are {', '.join(EVENTS)}.",
            )
        try:
            found = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise RookeryError(
                ErrorCode.INVALID_ARGUMENT, f"ROOKERY_HOOKS: {path} cannot be imported.", detail=repr(error)
            ) from error
        if not callable(found):
            raise RookeryError(ErrorCode.INVALID_ARGUMENT, f"ROOKERY_HOOKS: {path} is no function.")
        hooks.setdefault(event, []).append((path, found))
    return UserHooks(hooks, timeout_s=timeout_s)
