"""Processes that die under the house, and houses that die under their customers (issue 3, part 5)."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from server.errors import ErrorCode, RookeryError
from server.files import WorkspaceFiles
from server.gateway.listener import unix_listener
from server.gateway.scripted import prompt_with
from server.leases import Leases
from server.models import EventKind, SessionRecord, SessionState, StopReason
from server.requests import CostRequest, ListRequest
from server.resting import working_files
from server.sandboxes.base import SandboxSpec
from server.services import Services
from server.workspaces.healing import heal_workspace
from tests.crashes import Promises, crash_and_check, kill_one, temporary_directory
from tests.house import ME, PATIENCE_S, bash, go_on, open_house, run, say, seen, settled, spawn
from tests.metering import long_unwritten, stretches, unwritten
from tests.remote import RemoteHouse
from tests.workload import PHASES

SAMPLE = ("turn begun", "approval waits", "fork filled", "restore", "turn ended", "decisions written", "-")


@pytest.mark.parametrize("phase", SAMPLE)
async def test_a_killed_server_leaves_only_the_truth(tmp_path: Path, phase: str) -> None:
    with temporary_directory() as temporary:
        await crash_and_check(tmp_path / "home", temporary, Promises(), f"sample-{SAMPLE.index(phase)}", phase)


def test_the_sample_names_phases_that_there_are() -> None:
    assert set(SAMPLE) - {"-"} <= set(PHASES)


@pytest.mark.parametrize("victim", ["claude", "bwrap"])
async def test_a_killed_agent_is_an_error_of_its_turn_and_the_session_goes_on(tmp_path: Path, victim: str) -> None:
    async with open_house(tmp_path) as registry:
        keep = "echo kept > new; mv new kept; tail -f /dev/null"
        session_id = await spawn(registry, [{"text": "thinking"}, bash(keep)])
        await seen(registry, session_id, EventKind.TOOL_CALL)
        with anyio.fail_after(20):
            while not (tmp_path / "sandboxes" / session_id / "workspace" / "kept").exists():
                await anyio.sleep(0.02)
        kill_below(os.getpid(), victim)
        outcome = await settled(registry, session_id)
        assert outcome.stop_reason is StopReason.ERROR
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.AGENT_CRASHED
        assert outcome.changed_files == ("kept",)
        again = await go_on(registry, session_id, [bash("cat kept"), {"reply_with": "last_tool_result"}])
        assert "kept" in again.text


def kill_below(ancestor: int, name: str) -> None:
    """Kill the descendants of a process that have a name."""
    parents: dict[int, tuple[int, str]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, _, rest = (process / "stat").read_text().rpartition(")")
        except OSError:
            continue
        parents[int(process.name)] = (int(rest.split()[1]), command.partition("(")[2])

    def descends(pid: int) -> bool:
        while pid in parents and pid != ancestor:
            pid = parents[pid][0]
        return pid == ancestor

    found = [pid for pid, (_, command) in parents.items() if command == name and descends(pid)]
    assert found, f"no {name} runs"
    for pid in found:
        os.kill(pid, signal.SIGKILL)


async def test_an_interrupted_turn_says_what_was_done(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [{"text": "half done"}, bash("echo one > done; tail -f /dev/null")])
        workspace = tmp_path / "sandboxes" / session_id / "workspace"
        await seen(registry, session_id, EventKind.TOOL_CALL)
        with anyio.fail_after(20):
            while not (workspace / "done").exists():
                await anyio.sleep(0.02)
        await abandon(registry, session_id)
        outcome = await registry.outcome(ME, session_id)
        assert outcome.state is SessionState.IDLE
        assert outcome.stop_reason is StopReason.INTERRUPTED
        assert outcome.text == "half done"
        assert outcome.changed_files == ("done",)
        after = await go_on(registry, session_id, [{"reply_with": "reminders"}])
        assert "cut off" in after.text


async def test_a_session_that_somebody_is_just_at_is_mended_in_the_same_round(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        session_id = await spawn(registry, [bash("sleep 30")])
        await seen(registry, session_id, EventKind.TOOL_CALL)
        await lose(registry, session_id)
        rounds: list[int] = []

        async def mend() -> None:
            rounds.append(await registry.janitor.reconcile())

        lock = registry._fleet.lock(session_id)
        async with anyio.create_task_group() as tasks, lock:
            tasks.start_soon(mend)
            with anyio.fail_after(PATIENCE_S):
                while not lock.statistics().tasks_waiting:
                    await anyio.lowlevel.checkpoint()
        assert rounds == [1]
        assert (await registry.outcome(ME, session_id)).stop_reason is StopReason.INTERRUPTED


FULL = RookeryError(ErrorCode.STORAGE_UNAVAILABLE, "The disk is full.")


async def abandon(registry: object, session_id: str) -> None:
    """Lose a session's actor, and wait until the janitor's round has come by."""
    await lose(registry, session_id)
    await mended(registry, session_id)


async def mended(registry: object, session_id: str) -> None:
    """Have the janitor go round until a session is not at work any more."""
    with anyio.fail_after(PATIENCE_S):
        # A session that somebody in this process stays at is left to the next round.
        while (await registry.outcome(ME, session_id)).state.is_busy:  # type: ignore[attr-defined]
            await registry.janitor.reconcile()  # type: ignore[attr-defined]
            await anyio.sleep(0.01)


async def lose(registry: object, session_id: str, error: Exception = FULL) -> None:
    """Lose a session's actor as a failing store would: its end is never written."""
    fleet = registry._fleet  # type: ignore[attr-defined]  # nothing public loses an actor
    actor = fleet.actors[session_id]

    async def lost(*_: object, **__: object) -> None:
        raise error

    store = registry._services.store  # type: ignore[attr-defined]
    saved = store.end_turn
    store.end_turn = lost
    try:
        await actor._turns._agent.kill()
        with anyio.fail_after(30):
            await actor.stopped.wait()
    finally:
        store.end_turn = saved
    with anyio.fail_after(10):
        while session_id in fleet.actors:
            await anyio.sleep(0.01)


async def test_a_fault_at_the_end_of_one_session_ends_no_other(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        odd, other = [await spawn(registry, [bash("tail -f /dev/null")]) for _ in range(2)]
        for session_id in (odd, other):
            await seen(registry, session_id, EventKind.TOOL_CALL)
        await lose(registry, odd, KeyError("a fault of ours"))
        assert set(registry._fleet.actors) == {other}
        await mended(registry, odd)
        assert (await registry.outcome(ME, other)).state is SessionState.RUNNING


async def test_a_session_that_cannot_be_mended_keeps_no_other_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one odd session would keep the whole server from its start."""
    async with open_house(tmp_path) as registry:
        odd, other = [await spawn(registry, [bash("tail -f /dev/null")]) for _ in range(2)]
        for session_id in (odd, other):
            await seen(registry, session_id, EventKind.TOOL_CALL)
            await lose(registry, session_id)

        tried = anyio.Event()

        async def heal(services: Services, session: SessionRecord, files: WorkspaceFiles) -> None:
            if session.id == odd:
                tried.set()
                raise KeyError("a fault of ours")
            await heal_workspace(services, session, files)

        with monkeypatch.context() as patch:
            patch.setattr("server.janitor.heal_workspace", heal)
            await mended(registry, other)
            with anyio.fail_after(PATIENCE_S):
                while not tried.is_set():
                    await registry.janitor.reconcile()
            assert (await registry.outcome(ME, odd)).state is SessionState.RUNNING
        await mended(registry, odd)


@pytest.mark.parametrize("kind", ["index", "trees", "sealed", "restore"])
async def test_a_session_goes_on_whose_files_about_its_workspace_a_power_cut_left_empty(
    tmp_path: Path, kind: str
) -> None:
    """They are put in place at once, but what is in them may not have reached the disk."""
    async with open_house(tmp_path) as registry:
        session_id = (await run(registry, [bash("echo kept > kept")])).session_id
    for path in (tmp_path / "indexes").rglob(f"*.{kind}"):
        path.write_bytes(b"")
    async with open_house(tmp_path) as registry:
        again = await go_on(registry, session_id, [bash("cat kept"), {"reply_with": "last_tool_result"}])
        assert (again.stop_reason, again.text) == (StopReason.END_TURN, "kept")
        start = (await registry.get(ME, session_id)).checkpoints[0]
        report = await registry.rewind(ME, session_id, start.checkpoint_id, dry_run=True, conversation=False)
        assert [change.path for change in report.files] == ["kept"]


@pytest.mark.parametrize(("phase", "how"), [("fork filled", "after"), ("turn begun", "after")])
async def test_forks_of_one_request_that_a_crash_cut_off_are_as_many_as_were_asked_for_when_it_comes_again(
    tmp_path: Path, phase: str, how: str
) -> None:
    """The server dies over the second of three: when that is filled but not yet a session, or has begun its turn."""
    home = tmp_path / "home"
    tmp_path.chmod(0o755)
    prompt = prompt_with([bash("echo once >> file"), {"text": "forked"}])
    house = RemoteHouse(home)
    try:
        original = await anyio.to_thread.run_sync(house.ask, "spawn", [bash("echo one > file"), {"text": "done"}])
        await anyio.to_thread.run_sync(house.ask, "settled", original)
        await anyio.to_thread.run_sync(house.ask, "cut off", phase, 2, how)
        with pytest.raises(EOFError):
            await anyio.to_thread.run_sync(house.ask, "forks", original, prompt, 3, "the-same")
    finally:
        house.kill()
    async with open_house(home) as registry:
        answers = [
            await registry.fork(ME, original, prompt=prompt, checkpoint_id=None, count=3, request_id="the-same")
            for _ in range(2)
        ]
        assert answers[0] == answers[1]
        sessions = (await registry.list(ME, ListRequest(limit=100))).sessions
        assert sorted(session.session_id for session in sessions) == sorted({original, *answers[0]})
        assert len(sessions) == 4
        for fork in answers[0]:
            outcome = await settled(registry, fork)
            # The first turns may have been cut off with the server; none was begun twice.
            assert outcome.turn == 1
            if outcome.stop_reason is not StopReason.INTERRUPTED:
                assert (outcome.text, outcome.changed_files) == ("forked", ("file",))
        assert (await settled(registry, answers[0][2])).stop_reason is StopReason.END_TURN


async def test_the_decision_on_a_call_that_runs_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    house = RemoteHouse(home)
    try:
        await anyio.to_thread.run_sync(house.ask, "hold back decisions")
        session_id = await anyio.to_thread.run_sync(house.ask, "spawn", [bash("touch ran; tail -f /dev/null")])
        with anyio.fail_after(20):
            while not (home / "sandboxes" / session_id / "workspace" / "ran").exists():
                await anyio.sleep(0.01)
    finally:
        house.kill()
    async with open_house(home) as registry:
        (row,) = await registry.decisions(ME)
        assert (row.session_id, row.tool, row.decision) == (session_id, "Bash", "allow")


async def test_time_in_the_sandbox_of_a_killed_server_is_charged_up_to_its_last_heartbeat_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    house = RemoteHouse(home, sandbox_usd_per_s=0.01)
    try:
        session_id = await anyio.to_thread.run_sync(house.ask, "spawn", [bash("tail -f /dev/null")])
        await long_unwritten(home, session_id)
    finally:
        house.kill()
    since, lost = unwritten(home, session_id)
    assert stretches(home, session_id) == []
    # Neither who comes next nor who comes after needs to know the price.
    for _ in range(2):
        async with open_house(home) as registry:
            assert (await registry.outcome(ME, session_id)).stop_reason is StopReason.INTERRUPTED
            total = (await registry.costs(ME, CostRequest(session_id=session_id))).total
            assert total.sandbox_seconds == pytest.approx(lost.total_seconds(), abs=0.002)
            assert total.sandbox_usd == pytest.approx(total.sandbox_seconds * 0.01)
    [(start, _, _)] = stretches(home, session_id)
    assert start == since


async def test_a_decision_is_in_the_audit_once_though_its_server_is_killed_right_after_it_wrote_it(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    house = RemoteHouse(home)
    try:
        await anyio.to_thread.run_sync(house.ask, "cut off", "decisions written", 1, "after")
        with pytest.raises(EOFError):
            session_id = await anyio.to_thread.run_sync(house.ask, "spawn", [bash("tail -f /dev/null")])
            await anyio.to_thread.run_sync(house.ask, "settled", session_id)
    finally:
        house.kill()
    (left,) = (home / "audit").iterdir()
    assert left.stat().st_size > 0
    async with open_house(home) as registry:
        assert len(await registry.decisions(ME)) == 1
        assert not left.exists()


async def test_a_long_temporary_directory_keeps_no_server_from_its_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    leases = Leases(tmp_path / "home", "one")
    with leases.hold() as run:
        unix_listener(run / "gateway.sock").close()
        assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert not run.exists()


async def test_the_run_directory_of_a_dead_server_is_removed_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with temporary_directory() as temporary:
        kill_one(home, temporary, Promises(), "run-directory", "session written")
        (left,) = temporary.iterdir()
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        (stranger / "kept").touch()
        (home / "servers" / "server_forged.lock").write_text(f"{Leases(home, 'x').host}\n{stranger}")
        link = temporary / "rookery-0123456789abcdef"
        link.symlink_to(stranger)
        (home / "servers" / "server_linked.lock").write_text(f"{Leases(home, 'x').host}\n{link}")
        async with open_house(home):
            assert not left.exists()
            assert (stranger / "kept").exists()
            assert link.is_symlink()
            link.unlink()


async def test_b07_of_two_racing_prompts_one_wins_and_the_other_finds_the_session_busy(tmp_path: Path) -> None:
    """B07: two racing continue_session on one session, in one server and across two."""
    async with open_house(tmp_path) as one, open_house(tmp_path) as other:
        first = await run(one, [{"text": "first"}])
        for left, right in ((one, one), (one, other), (other, other)):
            before = (await one.outcome(ME, first.session_id)).turn
            turns: list[int] = []
            refusals: list[ErrorCode] = []

            async def ask(registry: object, turns: list[int] = turns, refusals: list[ErrorCode] = refusals) -> None:
                try:
                    turns.append(await say(registry, first.session_id, [bash("sleep 1"), {"text": "won"}]))  # type: ignore[arg-type]
                except RookeryError as error:
                    refusals.append(error.code)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, left)
                tasks.start_soon(ask, right)
            assert (turns, refusals) == ([before + 1], [ErrorCode.SESSION_BUSY])
            assert (await settled(one, first.session_id)).text == "won"


async def test_b07_the_same_request_racing_in_two_servers_is_one_turn(tmp_path: Path) -> None:
    """B07: the same request_id racing gives the same turn, across two servers too, and also when it is over."""
    async with open_house(tmp_path, idle_s=0.1) as one, open_house(tmp_path) as other:
        first = await run(one, [{"text": "first"}])
        with anyio.fail_after(20):
            while (await one.get(ME, first.session_id)).resident:
                await anyio.sleep(0.05)
        turns: list[int] = []

        async def ask(registry: object) -> None:
            turns.append(await say(registry, first.session_id, [{"text": "once"}], request_id="the-same"))  # type: ignore[arg-type]

        async with anyio.create_task_group() as tasks:
            for registry in (one, other, one, other):
                tasks.start_soon(ask, registry)
        assert turns == [2, 2, 2, 2]
        assert (await settled(one, first.session_id)).text == "once"
        assert await say(other, first.session_id, [{"text": "again"}], request_id="the-same", budget_usd=0.0001) == 2


async def test_a_session_that_is_forked_in_one_server_gets_no_turn_in_another_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the fork would get files that were never there together."""
    async with open_house(tmp_path, idle_s=0.1) as one, open_house(tmp_path) as other:
        first = await run(one, [bash("echo one > file"), {"text": "first"}])
        with anyio.fail_after(20):
            while (await one.get(ME, first.session_id)).resident:
                await anyio.sleep(0.05)
        owners: list[bool] = []
        async with anyio.create_task_group() as tasks:

            async def looking(services: Any, session: Any) -> Any:
                owner = (await services.store.session_for_server(session.id)).owner
                owners.append(owner == services.server_id)
                tasks.start_soon(go_on, other, first.session_id, [bash("echo two > file"), {"text": "second"}])
                return await working_files(services, session)

            monkeypatch.setattr("server.undo.working_files", looking)
            (fork,) = await one.fork(ME, first.session_id, prompt=None, checkpoint_id=None, count=1)
        assert owners == [True]
        assert (await one.read_file(ME, fork, "file")).text == "one\n"
        assert (await settled(one, first.session_id)).text == "second"


async def test_old_checkpoints_are_thinned_out_but_not_what_a_fork_hangs_on(tmp_path: Path) -> None:
    async with open_house(tmp_path, checkpoints_kept=2) as registry:
        outcome = await run(registry, [bash("echo 1 > file"), {"text": "done"}])
        taken = [await registry.create_checkpoint(ME, outcome.session_id, str(number)) for number in range(5)]
        (fork,) = await registry.fork(ME, outcome.session_id, prompt=None, checkpoint_id=taken[1].id, count=1)
        await registry.janitor.thin_out()
        left = {checkpoint.checkpoint_id for checkpoint in (await registry.get(ME, outcome.session_id)).checkpoints}
        assert {checkpoint.id for checkpoint in taken} & left == {taken[index].id for index in (1, 3, 4)}
        assert outcome.checkpoint_id in left
        await registry.rewind(ME, outcome.session_id, taken[1].id, dry_run=False, conversation=False)
        await registry.rewind(ME, fork, taken[1].id, dry_run=False, conversation=False)


async def test_a_server_that_others_took_for_dead_enters_itself_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.registry.HEARTBEAT_S", 0.01)
    async with open_house(tmp_path) as registry:
        services = registry._services
        await services.store.remove_server(services.server_id)
        with anyio.fail_after(PATIENCE_S):
            while [server.id for server in await services.store.servers()] != [services.server_id]:
                await anyio.lowlevel.checkpoint()


async def test_servers_of_two_homes_on_one_host_that_share_a_store_do_not_take_each_other_for_dead(
    tmp_path: Path,
) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    async with open_house(tmp_path / "one", database_url=shared) as one:
        session_id = await spawn(one, [bash("until [ -e go ]; do sleep 0.05; done"), {"text": "done"}])
        await seen(one, session_id, EventKind.TOOL_CALL)
        async with open_house(tmp_path / "two", database_url=shared) as two:
            assert await two.janitor.reconcile() == 0
            assert {server.id for server in await two._services.store.servers()} == {
                one._services.server_id,
                two._services.server_id,
            }
            assert await one.janitor.reconcile() == 0
            (tmp_path / "one" / "sandboxes" / session_id / "workspace" / "go").touch()
            assert (await settled(one, session_id)).text == "done"


async def test_sandboxes_of_a_dead_server_go_while_another_lives_and_those_of_the_living_stay(tmp_path: Path) -> None:
    async with open_house(tmp_path) as one:
        services = one._services

        async def orphan(name: str, server: str) -> Path:
            labels = {"server": server} if server else {}
            await services.providers.default.create(SandboxSpec(name, services.gateway.socket, labels=labels))
            return tmp_path / "sandboxes" / name

        dead, nameless = await orphan("dead", "server_gone"), await orphan("nameless", "")
        async with open_house(tmp_path) as other:
            living = await orphan("living", other._services.server_id)
            spare = await orphan("spare", services.server_id)
            services.scratch.add("spare")
            await one.janitor.reconcile()
            assert [path.exists() for path in (dead, nameless, living, spare)] == [False, True, True, True]
        services.scratch.discard("spare")
        await one.janitor.reconcile()
        assert not any(path.exists() for path in (dead, nameless, living, spare))
