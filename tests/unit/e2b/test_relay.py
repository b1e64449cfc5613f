"""The relay, as the real program: what the agent says and hears survives its hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest

from server.concurrency import background_tasks
from server.errors import ErrorCode, RookeryError
from server.sandboxes.e2b.channel import unix_destination
from server.sandboxes.e2b.processes import RemoteAgent, RemoteProcess
from server.sandboxes.e2b.relay.frames import PIECE
from server.sandboxes.e2b.relay.records import SEGMENT
from tests.relays import Host, LocalRelay, host_of, local_relay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a relay starts processes as another user")

PATIENCE_S = 20


@pytest.fixture
def relay() -> Iterator[LocalRelay]:
    with local_relay() as relay:
        yield relay


async def command(host: Host, *argv: str, **more: object) -> RemoteProcess:
    request = {"argv": argv, "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/tmp", **more}
    return RemoteProcess(await host.channel.open("run", request))


async def agent(host: Host, *argv: str, keepsake: object = None) -> RemoteAgent:
    request = {"argv": argv, "env": {"PATH": "/usr/bin:/bin"}, "cwd": "/tmp", "keepsake": keepsake}
    started = RemoteAgent(await host.channel.open("agent", request))
    assert await started.met()
    return started


async def everything(process: RemoteProcess) -> bytes:
    output = b""
    with anyio.fail_after(PATIENCE_S):
        while piece := await process.read():
            assert len(piece) <= 64 * 1024
            output += piece
    return output


async def test_a_command_gives_its_output_and_status(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        process = await command(host, "/bin/sh", "-c", "id -u; cat; echo err >&2; exit 7")
        await process.write(b"given\n")
        await process.close_input()
        assert await everything(process) == b"1100\ngiven\n"
        assert (await process.wait(), process.stderr) == (7, b"err\n")


async def test_bytes_of_every_kind_pass_unchanged(relay: LocalRelay) -> None:
    data = bytes(range(256)) * 16384 + "größer, 日本語".encode() * 50_000
    async with host_of(relay) as host:
        process = await command(host, "cat")
        received = b""

        async def talk() -> None:
            await process.write(data)
            await process.close_input()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(talk)
            received = await everything(process)
        assert received == data


async def test_a_command_that_ends_takes_its_children_with_it(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        process = await command(host, "/bin/sh", "-c", "setsid sh -c 'sleep 600' & echo $!")
        pid = int(await everything(process))
        await process.wait()
        assert not os.path.exists(f"/proc/{pid}")


async def test_an_agent_that_runs_away_from_its_group_is_ended_with_it(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        started = await agent(
            host, "/bin/sh", "-c", "(setsid setsid sh -c 'echo $$; sleep 600' &); trap '' TERM; sleep 600; sleep 600"
        )
        with anyio.fail_after(PATIENCE_S):
            pid = int(await started.read())
            await started.terminate()
        assert started.returncode is not None
        assert not os.path.exists(f"/proc/{pid}")


async def test_a_missing_program_is_a_failed_command(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        assert await (await command(host, "no-such-program")).wait() == 127


COUNTING = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; read x; echo got $x; read x; echo got $x"


ANSWERING = "i=0; while read x; do n=0; while [ $n -lt 500 ]; do i=$((i+1)); n=$((n+1)); echo $i; done; echo $x; done"


async def test_a_broken_wire_loses_nothing_and_repeats_nothing(relay: LocalRelay) -> None:
    expected: list[str] = []
    async with host_of(relay) as host:
        started = await agent(host, "/bin/sh", "-c", ANSWERING)
        output = b""
        with anyio.fail_after(PATIENCE_S):
            for word in ("one", "two", "three", "four"):
                await started.write(f"{word}\n".encode())
                host.cut()
                while f"{word}\n".encode() not in output:
                    output += await started.read()
            await started.close_input()
            output += await everything(started)
        for index, word in enumerate(("one", "two", "three", "four")):
            expected += [*(str(number) for number in range(index * 500 + 1, index * 500 + 501)), word]
        assert output.decode().splitlines() == expected
        assert await started.wait() == 0
        assert len(host.wires) == 5


async def test_another_host_goes_on_where_the_last_one_had_settled(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        started = await agent(host, "/bin/sh", "-c", COUNTING, keepsake={"token": "t"})
        output = b""
        while output.count(b"\n") < 1000:
            output += await started.read()
        await started.write(b"first\n")
        settled = output[: output.rindex(b"\n") + 1]
        started.settle(len(settled))
        # The signal is out once this came back.
        assert await everything(await command(host, "echo", "x")) == b"x\n"
    async with host_of(relay) as host:
        started = RemoteAgent(await host.channel.open("resume", position=-1))
        assert await started.met()
        assert (started.position, started.keepsake) == (len(settled), {"token": "t"})
        told = RemoteProcess(await host.channel.open("inputs"))
        # The input was sent before the settling, so no host needs it any more.
        assert await everything(told) == b""
        await started.write(b"second\n")
        whole = settled + await everything(started)
        assert whole.decode().splitlines() == [*(f"line {n}" for n in range(1, 3001)), "got first", "got second"]


async def test_output_that_no_host_settles_is_bounded_and_holds_the_agent_up_until_one_does() -> None:
    kept, whole = 5 << 20, 24 << 20
    bound = kept + PIECE
    with local_relay(kept) as relay:
        async with host_of(relay) as host:
            flood = await agent(host, "/bin/sh", "-c", f"yes 'a line of many' | head -c {whole}")
            heard, settled, rounds = 0, 0, 0
            with anyio.fail_after(PATIENCE_S):
                while piece := await flood.read():
                    heard += len(piece)
                    assert heard <= settled + bound, "it was not held up"
                    if heard >= min(settled + kept, whole):
                        # It has had time to say more, had it been let.
                        assert await everything(await command(host, "echo", "here")) == b"here\n"
                        assert relay.kept_now() <= bound + SEGMENT, "what is settled goes, a file at a time"
                        flood.settle(settled := heard)
                        rounds += 1
            assert (heard, await flood.wait()) == (whole, 0)
            assert rounds >= 4


async def test_another_host_learns_what_was_told_and_not_settled(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        started = await agent(host, "cat")
        await started.write(b"one\n")
        await started.write(b"two\n")
        with anyio.fail_after(PATIENCE_S):
            output = b""
            while b"two\n" not in output:
                output += await started.read()
    async with host_of(relay) as host:
        started = RemoteAgent(await host.channel.open("resume", position=-1))
        assert await started.met()
        assert await everything(RemoteProcess(await host.channel.open("inputs"))) == b"one\ntwo\n"
        await started.write(b"three\n")
        await started.close_input()
        assert await everything(started) == b"one\ntwo\nthree\n"
        assert await started.wait() == 0


async def test_a_half_told_input_of_a_host_that_died_is_no_input(relay: LocalRelay) -> None:
    async with host_of(relay) as host:
        started = await agent(host, "cat")
        await started._stream.write(b"half")
        assert await everything(await command(host, "echo", "x")) == b"x\n"
    async with host_of(relay) as host:
        started = RemoteAgent(await host.channel.open("resume", position=-1))
        assert await started.met()
        await started.write(b"whole\n")
        await started.close_input()
        assert await everything(started) == b"whole\n"


async def test_a_host_whose_place_was_taken_does_not_take_it_back(relay: LocalRelay) -> None:
    async with host_of(relay) as first:
        started = await agent(first, "cat")
        async with host_of(relay) as second:
            with pytest.raises(RookeryError) as caught:
                await everything(started)
            assert caught.value.code is ErrorCode.SANDBOX_LOST
            taken = RemoteAgent(await second.channel.open("resume", position=-1))
            assert await taken.met()
            await taken.write(b"here\n")
            await taken.close_input()
            assert await everything(taken) == b"here\n"


async def test_connections_to_the_gateway_reach_the_host_and_wait_while_there_is_none(relay: LocalRelay) -> None:
    path = relay.directory / "upstream.sock"
    script = f"""
import socket
s = socket.socket(socket.AF_UNIX)
s.connect({str(relay.gateway)!r})
s.sendall(bytes(300000))
s.shutdown(socket.SHUT_WR)
count = 0
while data := s.recv(65536):
    count += len(data)
assert count == 300000
print(count, flush=True)
"""
    loop = 'for i in 1 2 3; do until "$0" -c "$1"; do :; done; read x; done'

    async def echo(stream: anyio.abc.SocketStream) -> None:
        with suppress(anyio.BrokenResourceError):
            async with stream:
                async for piece in stream:
                    await stream.send(piece)

    listener = await anyio.create_unix_listener(path)
    async with listener, background_tasks() as tasks:
        tasks.start_soon(listener.serve, echo)
        async with host_of(relay, gateway=lambda: unix_destination(str(path))) as host:
            started = await agent(host, "/bin/sh", "-c", loop, "/usr/bin/python3", script)
            with anyio.fail_after(PATIENCE_S):
                assert await started.read() == b"300000\n"
            await started.write(b"\n")
            assert await everything(await command(host, "echo", "x")) == b"x\n"
        async with host_of(relay, gateway=lambda: unix_destination(str(path))) as host:
            started = RemoteAgent(await host.channel.open("resume", position=-1))
            assert await started.met()
            output = b""
            with anyio.fail_after(PATIENCE_S):
                while output.count(b"\n") < 2:
                    output += await started.read()
            assert output.splitlines()[:2] == [b"300000"] * 2


async def test_the_agent_can_neither_reach_the_relay_nor_forge_its_own_output(relay: LocalRelay) -> None:
    """The relay's socket and logs are root's; the agent's streams are sockets, which nobody opens through /proc."""
    async with host_of(relay) as host:
        started = await agent(host, "/bin/sh", "-c", "echo up; sleep 600")
        assert await started.read() == b"up\n"
        pid = relay.processes()[0]
        script = (
            f"ls {relay.directory}/state {relay.directory}/private 2>&1 | grep -c 'Permission denied'; "
            f"kill -9 {pid} 2>&1 | grep -c . ; "
            "for p in /proc/[0-9]*; do grep -qs '^Uid:.1100' $p/status && echo forged > $p/fd/1; done 2>/dev/null; "
            f"cat /proc/{pid}/environ /proc/{pid}/mem 2>/dev/null | wc -c"
        )
        assert await everything(await command(host, "/bin/bash", "-c", script)) == b"2\n1\n0\n"
        await started.terminate()
        assert await everything(started) == b""
