"""A server that works at random until somebody kills it: what the crash tests kill.

:func:`serve`, run in a process of its own, opens a house and has several customers spawn, continue, fork, rewind,
approve and end. Every answer that a customer got is written to a pipe as a line of JSON before anything else happens,
so that whoever reads them knows what the house had promised when it died. With a phase it kills itself (SIGKILL) in or
shortly after that call; with ``-`` that is left to the reader.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import anyio

from server.agent.agent import Agent
from server.checkpoints import Checkpoints
from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState
from server.permissions.approvals import ApprovalDesk
from server.registry import Registry
from server.sandboxes.bubblewrap import BubblewrapProvider
from server.sandboxes.e2b.provider import E2BProvider
from server.store import Store
from tests.house import ME, bash, open_house, say, settled, spawn, until

CUSTOMERS: Final = 3
MAX_DELAY_S: Final = 0.05
"""Latest moment after a phase began at which it is cut off."""

PHASES: Final[dict[str, tuple[type, str]]] = {
    "session written": (Store, "create_session"),
    "turn begun": (Store, "begin_turn"),
    "sandbox made": (BubblewrapProvider, "create"),
    "sandbox made in the cloud": (E2BProvider, "create"),
    "sandbox written down": (Store, "update_session"),
    "prompt sent": (Agent, "prompt"),
    "events written": (Store, "append_events"),
    "approval waits": (ApprovalDesk, "ask"),
    "approval answered": (Store, "answer_approval"),
    "turn reopened": (Store, "reopen_turn"),
    "checkpoint taken": (Checkpoints, "take"),
    "checkpoint written": (Store, "add_checkpoint"),
    "restore": (Checkpoints, "restore"),
    "fork filled": (Checkpoints, "materialise"),
    "transcript copied": (Store, "copy_transcript"),
    "state moved": (Store, "move"),
    "turn ended": (Store, "end_turn"),
    "money recorded": (Store, "record_request"),
    "decisions written": (Store, "record_decisions"),
    "session deleted": (Store, "delete_session"),
}
"""Where a server can be cut off: the name of the moment → class and method."""

ASKING: Final = """
version: 1
id: asking
extends: workspace
rules:
  - id: ask-for-touch
    effect: ask
    tools: [Bash]
    when: {argv: [touch]}
    because: "touching is asked"
"""

MANY_FILES: Final = "for i in $(seq 200); do echo $RANDOM > file$i; done"


_pipe = 1


@dataclass(frozen=True)
class Ground:
    """Where the killed servers have their sandboxes.

    Args:
        settings: that say so.
        environment: that goes with them.
        longest_run_s: after which a server is killed where it is, if it was not cut off in a phase by then.
        living: the sandboxes that there are elsewhere, by their names there.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    longest_run_s: float = 2.5
    living: Callable[[], Iterable[str]] = tuple


HERE: Final = Ground()
"""On this machine."""


def overrides(home: Path, ground: Ground) -> dict[str, Any]:
    """Settings of the house under test, the same before and after a crash."""
    own = {"policy_dir": home.parent / "policies", "approval_hot_s": 0.5, "checkpoints_kept": 5}
    return {**own, **ground.settings}


def prepare(home: Path) -> None:
    """Write what the settings name."""
    policies = home.parent / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    (policies / "asking.yaml").write_text(ASKING)


def tell(kind: str, **data: Any) -> None:
    """Write down what the house has promised; unbuffered, for the next moment may be the last."""
    os.write(_pipe, json.dumps({"kind": kind, **data}).encode() + b"\n")


def cut_off_in(phase: str, chance: random.Random) -> None:
    """Have this process killed in or shortly after a phase: on the way in, in the midst, or on the way out."""
    at, how = chance.randint(1, 4), chance.choice(("before", "amidst", "after"))
    cut_off(phase, at, how, lambda: chance.uniform(0, MAX_DELAY_S))


def cut_off(phase: str, at: int, how: str, delay_s: Callable[[], float] = lambda: 0.0) -> None:
    """Have this process killed in a phase when it comes for the ``at``-th time: ``before``, ``amidst`` or ``after``."""
    owner, name = PHASES[phase]
    inner: Callable[..., Awaitable[Any]] = getattr(owner, name)
    countdown = at

    @functools.wraps(inner)
    async def cut(*args: Any, **kwargs: Any) -> Any:
        nonlocal countdown
        countdown -= 1
        now = countdown == 0
        if now and how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if now and how == "amidst":
            threading.Timer(delay_s(), os.kill, (os.getpid(), signal.SIGKILL)).start()
        result = await inner(*args, **kwargs)
        if now and how == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, cut)


def steps(chance: random.Random) -> list[dict[str, Any]]:
    """A turn of some kind."""
    number = chance.randrange(10**6)
    word = f"word {number}"
    return chance.choice(
        (
            [{"text": word}],
            [{"text": f"{word} " * 40, "token_delay_s": 0.05}],
            [bash(f"echo {number} > note"), {"text": word}],
            [{"text": "first"}, bash(MANY_FILES), bash("sleep 0.3"), {"text": word}],
            [bash("mkdir -p deep/er; ln -sf ../note deep/er/link; rm -f file1*"), {"text": word}],
            [bash("touch asked-for"), {"text": word}],
        )
    )


class Customer:
    """Does one thing after the other with sessions of its own."""

    def __init__(self, registry: Registry, chance: random.Random, name: str) -> None:
        self._registry = registry
        self._chance = chance
        self._name = name
        self._sessions: list[str] = []
        self._asked = 0

    async def work(self) -> None:
        """Until killed."""
        while True:
            chosen = self._chance.choice((self._continue, self._continue, self._fork, self._rewind, self._end))
            try:
                await (self._spawn() if not self._sessions else chosen(self._chance.choice(self._sessions)))
            except RookeryError as error:
                if error.code is ErrorCode.INTERNAL:
                    tell("fault", text=f"{error.message} {error.detail}")

    async def _spawn(self) -> None:
        self._asked += 1
        request_id = f"{self._name}-{self._asked}"
        tell("asks", request_id=request_id)
        session_id = await spawn(self._registry, steps(self._chance), request_id=request_id, policy="asking")
        tell("spawned", request_id=request_id, session_id=session_id)
        self._sessions.append(session_id)
        await self._finish(session_id)

    async def _continue(self, session_id: str) -> None:
        self._asked += 1
        request_id = f"{self._name}-{self._asked}"
        turn = await say(self._registry, session_id, steps(self._chance), request_id=request_id)
        tell("continued", session_id=session_id, request_id=request_id, turn=turn)
        if self._chance.random() < 0.15:
            await self._registry.interrupt(ME, session_id)
        await self._finish(session_id)

    async def _finish(self, session_id: str) -> None:
        def rests(now: Outcome) -> bool:
            return not now.state.is_busy or bool(now.pending_approvals)

        outcome = await until(self._registry, session_id, rests)
        for pending in outcome.pending_approvals:
            allow = self._chance.random() < 0.7
            await anyio.sleep(self._chance.uniform(0, 1.2))
            await self._registry.answer_approval(ME, pending.approval_id, allow=allow)
            tell("answered", session_id=session_id, approval_id=pending.approval_id)
        outcome = await settled(self._registry, session_id)
        tell("finished", outcome=outcome.model_dump(mode="json"))

    async def _fork(self, session_id: str) -> None:
        count = self._chance.choice((1, 2))
        prompt = "hello" if self._chance.random() < 0.3 else None
        ids = await self._registry.fork(ME, session_id, prompt=prompt, checkpoint_id=None, count=count)
        tell("forked", session_id=session_id, ids=ids)
        for fork in ids:
            await self._finish(fork)
        self._sessions = [*self._sessions, *ids][-3:]

    async def _rewind(self, session_id: str) -> None:
        outcome = await self._registry.outcome(ME, session_id)
        if outcome.checkpoint_id is not None:
            conversation = self._chance.random() < 0.5
            await self._registry.rewind(ME, session_id, outcome.checkpoint_id, dry_run=False, conversation=conversation)
            tell("rewound", session_id=session_id)

    async def _end(self, session_id: str) -> None:
        if self._chance.random() < 0.5:
            return
        delete = self._chance.random() < 0.5
        tell("ends", session_id=session_id, delete=delete)
        deletion = await self._registry.end(ME, session_id, delete=delete)
        assert deletion.state is SessionState.ENDED
        tell("ended", session_id=session_id, delete=delete)
        self._sessions.remove(session_id)


async def main(home: Path, seed: str, phase: str, ground: Ground) -> None:
    chance = random.Random(seed)
    if phase != "-":
        cut_off_in(phase, chance)
    async with open_house(home, warm=chance.choice((0, 1)), **overrides(home, ground)) as registry:
        tell("ready")
        async with anyio.create_task_group() as tasks:
            for number in range(CUSTOMERS):
                customer = Customer(registry, random.Random(f"{seed}-{number}"), f"{seed}-{number}")
                tasks.start_soon(customer.work)


def serve(home: str, temporary: str, seed: str, phase: str, ground: Ground, pipe: Connection) -> None:
    """Work in ``home`` until killed.

    Args:
        temporary: the temporary directory of this server.
        seed: of all that happens.
        phase: one of :data:`PHASES`, or ``-``.
        ground: where its sandboxes are.
        pipe: where promises are written.
    """
    global _pipe
    _pipe = pipe.fileno()
    tempfile.tempdir = temporary
    os.environ.update(ground.environment)
    anyio.run(main, Path(home), seed, phase, ground)
