"""Killing a working server and looking at what it left: the checks that every crash test makes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from server.errors import ErrorCode, RookeryError
from server.models import Outcome, SessionState, StopReason
from server.registry import Registry
from server.requests import ListRequest, SpawnRequest
from tests.house import ME, PATIENCE_S, go_on, open_house, settled
from tests.providers import owned_below
from tests.workload import HERE, PHASES, Ground, overrides, prepare, serve

READY_S: Final = 60.0
GONE_S: Final = 10.0
"""How long anything of a killed server may still be there."""

_FORKS: Final = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.workload"])
"""Servers are forked from one that has imported everything, which takes longer than all else they do."""

GROUPS: Final = Path("/sys/fs/cgroup")


@dataclass
class Promises:
    """What the killed servers of one home had told their customers."""

    asked: set[str] = field(default_factory=set)
    spawned: dict[str, str] = field(default_factory=dict)
    """Request → session."""
    turns: dict[tuple[str, str], int] = field(default_factory=dict)
    """Session and request → turn."""
    finished: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """Session and turn → outcome."""
    sessions: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    leaving: set[str] = field(default_factory=set)
    """Sessions whose deletion was asked for."""
    faults: list[str] = field(default_factory=list)

    def hear(self, line: dict[str, Any]) -> None:
        """Take one line of the workload."""
        match line["kind"]:
            case "asks":
                self.asked.add(line["request_id"])
            case "spawned":
                self.spawned[line["request_id"]] = line["session_id"]
                self.sessions.add(line["session_id"])
            case "continued":
                self.turns[line["session_id"], line["request_id"]] = line["turn"]
            case "finished":
                outcome = line["outcome"]
                self.finished[outcome["session_id"], outcome["turn"]] = outcome
            case "forked":
                self.sessions.update(line["ids"])
            case "ends" if line["delete"]:
                self.leaving.add(line["session_id"])
            case "ended" if not line["delete"]:
                self.ended.add(line["session_id"])
            case "fault":
                self.faults.append(line["text"])


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A temporary directory for the killed servers alone, so that what they leave in it can be seen."""
    directory = Path("/tmp") / f"k{os.getpid()}-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        for left in directory.iterdir():
            for path in left.iterdir():
                path.unlink()
            left.rmdir()
        directory.rmdir()


def kill_one(
    home: Path, temporary: Path, promises: Promises, seed: str, phase: str | None = None, ground: Ground = HERE
) -> str:
    """Run a server and kill it; how it was killed, with its process id."""
    chance = random.Random(seed)
    phase = phase or chance.choice(["-", *PHASES])
    prepare(home)
    reader, writer = _FORKS.Pipe(duplex=False)
    arguments = (str(home), str(temporary), seed, phase, ground, writer)
    server = _FORKS.Process(target=serve, args=arguments, daemon=True)
    server.start()
    writer.close()
    heard = b""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and wait([reader, server.sentinel], deadline - time.monotonic()):
        piece = os.read(reader.fileno(), 65536)
        if not piece:
            break
        if b'"ready"' in piece and b'"ready"' not in heard:
            longest_s = ground.longest_run_s
            deadline = time.monotonic() + (chance.uniform(0.05, longest_s) if phase == "-" else longest_s)
        heard += piece
    server.kill()
    server.join()
    while piece := os.read(reader.fileno(), 65536):
        heard += piece
    reader.close()
    assert server.exitcode == -9, server.exitcode
    for line in heard.split(b"\n")[:-1]:
        promises.hear(json.loads(line))
    return f"{seed}: {phase} ({server.pid})"


async def check_house(
    home: Path, temporary: Path, promises: Promises, killed: str, chance: random.Random, ground: Ground
) -> None:
    """Open the home anew and hold it to all promises."""
    uids = {path.stat().st_uid for path in (home / "sandboxes").glob("*/workspace")} if home.exists() else set()
    pid = int(killed.rpartition("(")[2].rstrip(")"))
    async with open_house(home, **overrides(home, ground)) as registry:
        started = time.monotonic()
        assert not promises.faults, promises.faults
        await _nothing_is_left(home, temporary, uids, pid, started)
        if ground is not HERE:
            await _all_come_to_rest(registry)
            await _no_strangers(home, ground)
        listed = await _sessions(registry)
        interrupted = _check_sessions(home, promises, listed)
        await _check_money(registry, home, promises, listed, ground)
        _check_calls(home)
        await _check_requests(registry, promises)
        if interrupted:
            await _carry_on(registry, chance.choice(interrupted))


async def _all_come_to_rest(registry: Registry) -> None:
    """Turns whose agents outlived the server go on, to their end or into the sleep over a question."""
    with anyio.fail_after(PATIENCE_S):
        while any(one.state.is_busy and not _asleep(one) for one in (await _sessions(registry)).values()):
            await anyio.sleep(0.1)


async def _no_strangers(home: Path, ground: Ground) -> None:
    """Sandboxes elsewhere that no session owns go, behind the start."""
    deadline = time.monotonic() + PATIENCE_S
    while strangers := set(ground.living()) - owned_below(home):
        assert time.monotonic() < deadline, f"no session owns these sandboxes: {strangers}"
        await anyio.sleep(0.1)


def _asleep(outcome: Outcome) -> bool:
    return outcome.state is SessionState.AWAITING_APPROVAL and outcome.stop_reason is StopReason.AWAITING_APPROVAL


async def _carry_on(registry: Registry, session_id: str) -> None:
    """An interrupted session takes its next prompt."""
    outcome = await go_on(registry, session_id, [{"text": "carried on"}])
    assert (outcome.stop_reason, outcome.text) == (StopReason.END_TURN, "carried on"), outcome


async def _sessions(registry: Registry) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    cursor = None
    while True:
        page = await registry.list(ME, ListRequest(limit=100, cursor=cursor))
        for session in page.sessions:
            try:
                found[session.session_id] = await registry.outcome(ME, session.session_id)
            except RookeryError as error:
                # Its deletion, which a crash had cut off, was just done. Others must not be missing, see below.
                assert error.code is ErrorCode.SESSION_NOT_FOUND
        cursor = page.cursor
        if cursor is None:
            return found


def _check_sessions(home: Path, promises: Promises, listed: dict[str, Outcome]) -> list[str]:
    interrupted = []
    missing = promises.sessions - set(listed) - promises.leaving
    assert not missing, f"lost sessions: {missing}"
    for session_id, outcome in listed.items():
        truthful = not outcome.state.is_busy or _asleep(outcome)
        # The answer of a sleeping session may have woken it by now.
        assert truthful or outcome.state is SessionState.RUNNING, outcome
        assert outcome.state is not SessionState.STARTING, outcome
        if outcome.state is SessionState.IDLE and outcome.stop_reason is StopReason.INTERRUPTED:
            interrupted.append(session_id)
    for session_id in promises.ended - promises.leaving:
        assert listed[session_id].state is SessionState.ENDED
    with sqlite3.connect(home / "rookery.db") as database:
        rows = database.execute("SELECT session_id, number, stop_reason, text, request_id FROM turns").fetchall()
    turns = {(row[0], row[1]): row[2:] for row in rows}
    for (session_id, number), promised in promises.finished.items():
        if session_id in promises.leaving or promised["stop_reason"] in (None, "awaiting_approval"):
            continue
        reason, text, _ = turns[session_id, number]
        assert (reason, text) == (promised["stop_reason"], promised["text"]), (session_id, number)
    for (session_id, request_id), number in promises.turns.items():
        if session_id not in promises.leaving:
            assert turns[session_id, number][2] == request_id
    return interrupted


async def _check_requests(registry: Registry, promises: Promises) -> None:
    """A request that was answered gives the same session again."""
    for request_id, session_id in list(promises.spawned.items())[-5:]:
        if session_id not in promises.leaving:
            again = await registry.spawn(ME, SpawnRequest(prompt="again", request_id=request_id))
            assert again == session_id
    unanswered = sorted(promises.asked - set(promises.spawned))[-1:]
    for request_id in unanswered:
        ids = set[str]()

        async def ask(request_id: str = request_id, ids: set[str] = ids) -> None:
            ids.add(await registry.spawn(ME, SpawnRequest(prompt="again", request_id=request_id)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        (promises.spawned[request_id],) = ids
        promises.sessions.update(ids)
        await settled(registry, promises.spawned[request_id])


async def _check_money(
    registry: Registry, home: Path, promises: Promises, listed: dict[str, Outcome], ground: Ground
) -> None:
    latest = {session_id: outcome for (session_id, _), outcome in sorted(promises.finished.items())}
    for session_id, promised in latest.items():
        if session_id in listed:
            cost = listed[session_id].cost
            assert cost.usd >= promised["cost"]["usd"] - 1e-9
            assert cost.requests >= promised["cost"]["requests"]
    if not any(outcome.state.is_busy for outcome in (await _sessions(registry)).values()):
        # Of sandboxes elsewhere this is done behind the start, which waits for no network.
        deadline = time.monotonic() + (0 if ground is HERE else GONE_S)
        while open_lines := _open_lines(home):
            assert time.monotonic() < deadline, open_lines
            await anyio.sleep(0.1)


def _open_lines(home: Path) -> list[Any]:
    """Claims of requests that nobody makes any more, and time of sandboxes that no living server will write down."""
    with sqlite3.connect(home / "rookery.db") as database:
        claims = database.execute("SELECT * FROM reservations").fetchall()
        lost = "SELECT * FROM running_sandboxes WHERE owner NOT IN (SELECT id FROM servers)"
        return claims + database.execute(lost).fetchall()


def _check_calls(home: Path) -> None:
    """No call ran without a row of its decision, and none ran twice."""
    with sqlite3.connect(home / "rookery.db") as database:
        results = database.execute("SELECT session_id, data FROM events WHERE kind = 'tool_result'").fetchall()
        decided = {row[0] for row in database.execute("SELECT tool_use_id FROM decisions")}
    ran = Counter((session, result["id"]) for session, data in results if not (result := json.loads(data))["is_error"])
    unrecorded, again = {call for _, call in ran} - decided, {call for call, times in ran.items() if times > 1}
    assert not unrecorded, f"unrecorded calls: {unrecorded}"
    assert not again, f"calls that ran again: {again}"


async def _nothing_is_left(home: Path, temporary: Path, uids: set[int], pid: int, started: float) -> None:
    left: list[str] = []
    while True:
        left = await anyio.to_thread.run_sync(_left, home, temporary, uids, pid)
        if not left:
            return
        assert time.monotonic() - started < GONE_S, left
        await anyio.sleep(0.1)


def _left(home: Path, temporary: Path, uids: set[int], pid: int) -> list[str]:
    """What there still is of a killed server: processes, control groups, directories, sockets, locks, rows."""
    with sqlite3.connect(home / "rookery.db") as database:
        owned = {
            row[0] for row in database.execute("SELECT id FROM sessions WHERE sandbox IS NOT NULL OR owner IS NOT NULL")
        }
        servers = [row[0] for row in database.execute("SELECT id FROM servers")]
    left = [f"sandbox {path.name}" for path in (home / "sandboxes").iterdir() if path.name not in owned]
    left += [f"temporary {path}" for path in temporary.iterdir()]
    for path, names, _ in os.walk(GROUPS):
        left += [f"group {path}/{name}" for name in names if name.startswith(f"rookery-{pid}-")]
    locks = [path.name for path in (home / "servers").glob("*.lock")]
    if len(servers) != 1 or locks != [f"{servers[0]}.lock"]:
        left.append(f"servers {servers} {locks}")
    left += [f"decisions {path}" for path in (home / "audit").glob("*") if path.stem not in servers]
    mine = os.getpid()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lines = (process / "status").read_text().splitlines()
        except OSError:
            continue
        status = dict(line.split(":", 1) for line in lines)
        if int(status["Uid"].split()[0]) in uids - {os.getuid()} and int(status["PPid"]) != mine:
            left.append(f"process {process.name} {status['Name']}")
    return left


async def crash_and_check(
    home: Path, temporary: Path, promises: Promises, seed: str, phase: str | None = None, ground: Ground = HERE
) -> str:
    """One kill and all checks; how it was killed."""
    killed = await anyio.to_thread.run_sync(kill_one, home, temporary, promises, seed, phase, ground)
    try:
        await check_house(home, temporary, promises, killed, random.Random(seed), ground)
    except Exception as error:
        error.add_note(killed)
        raise
    return killed
