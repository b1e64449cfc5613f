"""What every sandbox provider must do, whatever runs below it.

A provider's test module subclasses :class:`SandboxSuite` and gives two fixtures: ``provider``, and ``new_spec``, a
callable that makes the :class:`SandboxSpec` of a new session. Inside, the suite relies on a POSIX shell and the usual
small programs.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CONFIG_DIR, WORKSPACE, AgentProcess, Sandbox, SandboxProvider, SandboxSpec

PATIENCE_S = 30.0

NewSpec = Callable[[], SandboxSpec]


async def sh(sandbox: Sandbox, script: str) -> str:
    """The output of a script that must succeed."""
    result = await sandbox.run(["/bin/sh", "-c", script])
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode(errors="surrogateescape")


async def read_all(process: AgentProcess) -> bytes:
    """Its output to the end."""
    output = b""
    with anyio.fail_after(PATIENCE_S):
        while piece := await process.read():
            assert len(piece) <= 64 * 1024
            output += piece
    return output


async def read_line(process: AgentProcess) -> bytes:
    """Its output up to the first line end."""
    output = b""
    with anyio.fail_after(PATIENCE_S):
        while b"\n" not in output:
            piece = await process.read()
            assert piece, f"it ended: {process.stderr_tail()}"
            output += piece
    return output


async def stream(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    """Bytes in chunks."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def gathered(packing: Awaitable[AsyncIterator[bytes]]) -> bytes:
    """A whole stream."""
    return b"".join([chunk async for chunk in await packing])


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar stream made by hand, also of what no honest program would write."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for header, content in entries:
            header.size = len(content) if header.isreg() else 0
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """A header."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.mode = kind, link, mode
    return header


def names(archive: bytes) -> Iterable[str]:
    """What a tar stream holds."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return sorted(tar.getnames())


REFUSED_ARCHIVES = {
    "absolute": [(entry("/tmp/planted"), b"x")],
    "climbing": [(entry("a/../../planted"), b"x")],
    "through a link": [(entry("door", tarfile.SYMTYPE, link="/tmp"), b""), (entry("door/planted"), b"x")],
    "hard link outward": [(entry("passwd", tarfile.LNKTYPE, link="../../../etc/passwd"), b"")],
    "hard link to an absolute path": [(entry("passwd", tarfile.LNKTYPE, link="/etc/passwd"), b"")],
    "device": [(entry("null", tarfile.CHRTYPE), b"")],
    "pipe": [(entry("pipe", tarfile.FIFOTYPE), b"")],
}


class SandboxSuite:
    """The suite. Subclass it in a test module."""

    @pytest.fixture
    def provider(self) -> SandboxProvider:
        """The provider under test."""
        raise NotImplementedError

    @pytest.fixture
    def new_spec(self) -> NewSpec:
        """Makes specs of new sessions."""
        raise NotImplementedError

    @pytest.fixture
    async def sandbox(self, provider: SandboxProvider, new_spec: NewSpec) -> AsyncIterator[Sandbox]:
        """A new sandbox, destroyed at the end."""
        sandbox = await provider.create(new_spec())
        yield sandbox
        await sandbox.destroy()

    # Commands.

    async def test_a_command_gives_its_status_and_both_outputs(self, sandbox: Sandbox) -> None:
        result = await sandbox.run(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"])
        assert (result.exit_code, result.stdout, result.stderr) == (7, b"out\n", b"err\n")
        assert not result.truncated

    async def test_a_command_runs_in_the_workspace_as_an_unprivileged_user(self, sandbox: Sandbox) -> None:
        assert await sh(sandbox, "pwd") == f"{WORKSPACE}\n"
        assert int(await sh(sandbox, "id -u")) != 0

    async def test_a_command_gets_its_input_to_the_end(self, sandbox: Sandbox) -> None:
        data = bytes(range(256)) * 4096
        result = await sandbox.run(["/bin/sh", "-c", "wc -c"], stdin=data)
        assert int(result.stdout) == len(data)

    async def test_a_command_that_ignores_its_input_ends_all_the_same(self, sandbox: Sandbox) -> None:
        assert (await sandbox.run(["true"], stdin=bytes(4 << 20))).exit_code == 0

    async def test_a_missing_program_is_a_failed_command_and_not_a_failed_sandbox(self, sandbox: Sandbox) -> None:
        result = await sandbox.run(["no-such-program"])
        assert result.exit_code == 127

    async def test_a_variable_is_given_and_none_of_the_server_is_there(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ROOKERY_CANARY", "sk-ant-canary")
        result = await sandbox.run(["env"], env={"GIVEN": "a b\n'c'"})
        assert b"GIVEN=a b\n'c'" in result.stdout
        assert b"CANARY" not in result.stdout
        assert b"canary" not in result.stdout

    async def test_the_output_of_a_command_is_bounded(self, sandbox: Sandbox) -> None:
        result = await sandbox.run(["/bin/sh", "-c", "head -c 3000000 /dev/zero"], max_output=100_000)
        assert result.exit_code == 0
        assert len(result.stdout) == 100_000
        assert result.truncated

    async def test_a_command_past_its_time_is_ended_with_all_its_children(self, sandbox: Sandbox) -> None:
        with pytest.raises(RookeryError) as caught:
            await sandbox.run(["/bin/sh", "-c", "(sleep 0.6; echo late > late) & sleep 600"], timeout_s=0.2)
        assert caught.value.code is ErrorCode.TIMEOUT
        assert await sh(sandbox, "sleep 0.6; ls") == ""

    async def test_files_last_from_one_command_to_the_next(self, sandbox: Sandbox) -> None:
        await sh(sandbox, "mkdir -p a/b && echo kept > a/b/c")
        assert await sh(sandbox, "cat a/b/c") == "kept\n"

    async def test_two_sandboxes_share_nothing(self, provider: SandboxProvider, new_spec: NewSpec) -> None:
        first, second = await provider.create(new_spec()), await provider.create(new_spec())
        try:
            await sh(first, "echo secret > /workspace/mine; echo secret > /tmp/mine")
            assert await sh(second, "ls -A /workspace /tmp | grep -c mine || true") == "0\n"
        finally:
            await first.destroy()
            await second.destroy()

    # The agent's process.

    async def test_the_agent_gets_exactly_its_words_and_variables(self, sandbox: Sandbox) -> None:
        script = 'printf "%s|" "$@"; echo "$TOKEN"; pwd'
        agent = await sandbox.start_agent(
            ["/bin/sh", "-c", script, "name", "a b", "--flag=$x", ""], {"TOKEN": "t 1"}, config_files={}
        )
        try:
            assert await read_all(agent) == f"a b|--flag=$x||t 1\n{WORKSPACE}\n".encode()
            assert await agent.wait() == 0
            assert agent.returncode == 0
        finally:
            await agent.terminate()

    async def test_the_agent_finds_its_configuration_and_nothing_of_the_last_one(self, sandbox: Sandbox) -> None:
        for turn in ("one", "two"):
            agent = await sandbox.start_agent(
                ["/bin/sh", "-c", f"cd {CONFIG_DIR} && find . -type f | sort; cat projects/p/t; echo x > left"],
                {},
                config_files={"projects/p/t": turn.encode(), "settings": b""},
            )
            try:
                assert await read_all(agent) == f"./projects/p/t\n./settings\n{turn}".encode()
            finally:
                await agent.terminate()

    async def test_a_conversation_passes_unchanged_in_both_directions(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(["cat"], {})
        data = bytes(range(256)) * 16 * 1024
        received = b""
        try:

            async def talk() -> None:
                await agent.write(data)
                await agent.close_input()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(talk)
                received = await read_all(agent)
            assert received == data
            assert await agent.wait() == 0
        finally:
            await agent.terminate()

    async def test_a_cancelled_read_loses_nothing(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(["cat"], {})
        try:
            with anyio.move_on_after(0.05):
                await agent.read()
            await agent.write(b"still here\n")
            assert await read_line(agent) == b"still here\n"
        finally:
            await agent.terminate()

    async def test_the_end_of_stderr_is_kept_and_a_flood_of_it_stalls_nothing(self, sandbox: Sandbox) -> None:
        script = "head -c 5000000 /dev/zero | tr '\\0' x >&2; echo the end >&2; echo done"
        agent = await sandbox.start_agent(["/bin/sh", "-c", script], {})
        try:
            assert await read_all(agent) == b"done\n"
        finally:
            await agent.terminate()
        assert agent.stderr_tail().endswith("the end\n")
        assert len(agent.stderr_tail()) <= 16 * 1024

    async def test_writing_to_an_agent_that_ended_is_an_error(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(["true"], {})
        await agent.wait()
        with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
            await agent.write(b"x" * 1_000_000)
        await agent.terminate()
        with pytest.raises((anyio.BrokenResourceError, anyio.ClosedResourceError)):
            await agent.write(b"x")
        assert await agent.read() == b""

    async def test_an_agent_that_ignores_every_request_to_end_is_ended(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(["/bin/sh", "-c", "trap '' TERM HUP INT; echo up; sleep 600; sleep 600"], {})
        await read_line(agent)
        with anyio.fail_after(PATIENCE_S):
            await agent.terminate()
            await agent.terminate()
        assert agent.returncode is not None
        assert await agent.wait() == agent.returncode

    async def test_a_reader_sees_the_end_when_the_agent_is_ended(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(["sleep", "600"], {})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(agent.terminate)
            assert await read_all(agent) == b""
        assert await agent.read() == b""

    async def test_an_agent_may_tidy_up_when_asked_to_end(self, sandbox: Sandbox) -> None:
        agent = await sandbox.start_agent(
            ["/bin/sh", "-c", "trap 'echo tidy > note; exit 3' TERM; echo up; while :; do sleep 0.05; done"], {}
        )
        await read_line(agent)
        await agent.terminate()
        assert agent.returncode == 3
        assert await sh(sandbox, "cat note") == "tidy\n"

    # Files as streams.

    async def test_a_workspace_comes_out_and_goes_in_again_unchanged(
        self, provider: SandboxProvider, new_spec: NewSpec, sandbox: Sandbox
    ) -> None:
        await sh(
            sandbox,
            "mkdir -p 'a dir/deep' empty && printf 'x%.0s' $(seq 1 5000) > 'a dir/deep/long' && : > none"
            " && echo '#!/bin/sh' > tool && chmod 755 tool && ln -s /usr/bin/env outward && ln -s 'a dir/deep' inward"
            " && touch -- '-rf' 'new\nline' \"$(printf 'not\\377utf8')\" && mkfifo pipe",
        )
        listing = "find . ! -name pipe -printf '%y %m %s %p -> %l\\n' | sed 's/^d \\([0-9]*\\) [0-9]*/d \\1/' | sort"
        expected = await sh(sandbox, listing)
        packed = await gathered(sandbox.pack())
        other = await provider.create(new_spec())
        try:
            await other.unpack(stream(packed))
            assert await sh(other, listing) == expected
            assert await sh(other, "cat 'a dir/deep/long'") == "x" * 5000
            await sh(other, "echo more >> tool && rm none && mkdir empty/now-mine")
        finally:
            await other.destroy()

    async def test_a_part_of_the_workspace_can_be_packed(self, sandbox: Sandbox) -> None:
        await sh(sandbox, "mkdir -p a/b && echo 1 > a/b/c && echo 2 > d")
        assert names(await gathered(sandbox.pack("a/b"))) == ["a/b", "a/b/c"]
        assert names(await gathered(sandbox.pack("d"))) == ["d"]

    @pytest.mark.parametrize("path", ["/etc", "../..", "a/../../..", "no/such", "door/passwd"])
    async def test_nothing_outside_the_workspace_can_be_packed(self, sandbox: Sandbox, path: str) -> None:
        await sh(sandbox, "ln -s /etc door")
        with pytest.raises(RookeryError) as caught:
            await gathered(sandbox.pack(path))
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("kind", REFUSED_ARCHIVES)
    async def test_f11_an_archive_that_would_leave_the_workspace_is_refused(self, sandbox: Sandbox, kind: str) -> None:
        """F11: zip-slip, or tar with links, on import."""
        with pytest.raises(RookeryError) as caught:
            await sandbox.unpack(stream(tar_of(*REFUSED_ARCHIVES[kind])))
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        assert await sh(sandbox, "ls -A /tmp; find . -name planted; find . -name passwd") == ""

    async def test_f04_an_archive_is_not_written_through_a_link_that_the_agent_made(self, sandbox: Sandbox) -> None:
        """F04: the sandbox makes a link, the host writes through it later."""
        await sh(sandbox, "mkdir inside && ln -s inside door && ln -s inside/target file")
        with pytest.raises(RookeryError) as caught:
            await sandbox.unpack(stream(tar_of((entry("door/planted"), b"x"))))
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT
        await sandbox.unpack(stream(tar_of((entry("file"), b"x"))))
        assert await sh(sandbox, "ls inside; test -L file || cat file") == "x"

    async def test_what_is_no_tar_stream_is_refused(self, sandbox: Sandbox) -> None:
        whole = tar_of((entry("file"), b"x" * 5000))
        for data in (b"junk" * 1000, whole[:2000], whole[:600]):
            with pytest.raises(RookeryError) as caught:
                await sandbox.unpack(stream(data))
            assert caught.value.code is ErrorCode.INVALID_ARGUMENT

    async def test_an_error_of_the_source_of_a_stream_comes_through(self, sandbox: Sandbox) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield tar_of((entry("file"), b"x" * 5000))[:1000]
            raise ConnectionResetError("gone")

        with pytest.raises(ConnectionResetError):
            await sandbox.unpack(broken())

    # A life from beginning to end.

    async def test_a_sandbox_is_found_again_by_its_reference(
        self, provider: SandboxProvider, new_spec: NewSpec
    ) -> None:
        spec = new_spec()
        sandbox = await provider.create(spec)
        await sh(sandbox, "echo kept > note")
        await sandbox.stop()
        await sandbox.stop()
        again = await provider.attach(sandbox.reference, spec)
        try:
            assert again.reference == sandbox.reference
            assert await sh(again, "cat note; echo more >> note; wc -l < note") == "kept\n2\n"
            (found,) = [one for one in await provider.owned() if one["id"] == sandbox.reference["id"]]
            assert {**found, **sandbox.reference} == dict(found)
            assert found["server"] == spec.labels.get("server", "")
        finally:
            await again.destroy()

    async def test_stopping_ends_the_agent_and_its_background_processes(self, sandbox: Sandbox) -> None:
        script = "(setsid sh -c 'sleep 0.5; echo alive > /workspace/survivor' &) ; echo up; sleep 600"
        agent = await sandbox.start_agent(["/bin/sh", "-c", script], {})
        await read_line(agent)
        await sandbox.stop()
        assert agent.returncode is not None
        assert await sh(sandbox, "sleep 0.6; ls") == ""

    async def test_a_destroyed_sandbox_is_lost_for_everyone(self, provider: SandboxProvider, new_spec: NewSpec) -> None:
        spec = new_spec()
        sandbox = await provider.create(spec)
        await sh(sandbox, "mkdir -p a && chmod 000 a")
        await sandbox.destroy()
        await sandbox.destroy()
        assert sandbox.reference["id"] not in {found["id"] for found in await provider.owned()}
        with pytest.raises(RookeryError) as caught:
            await provider.attach(sandbox.reference, spec)
        assert caught.value.code is ErrorCode.SANDBOX_LOST
        with pytest.raises(RookeryError) as caught:
            await sandbox.run(["true"])
        assert caught.value.code is ErrorCode.SANDBOX_LOST

    async def test_the_reference_of_another_session_is_refused(
        self, provider: SandboxProvider, new_spec: NewSpec, sandbox: Sandbox
    ) -> None:
        with pytest.raises(RookeryError) as caught:
            await provider.attach(sandbox.reference, new_spec())
        assert caught.value.code is ErrorCode.SANDBOX_LOST

    async def test_a_cancelled_command_leaves_nothing_behind(self, sandbox: Sandbox) -> None:
        with anyio.move_on_after(0.2) as scope:
            await sandbox.run(["/bin/sh", "-c", "sleep 0.6; echo alive > survivor; sleep 600"])
        assert scope.cancelled_caught
        assert await sh(sandbox, "sleep 0.6; ls") == ""

    async def test_a_probe_says_that_sandboxes_can_be_made(self, provider: SandboxProvider) -> None:
        checks = await provider.probe()
        assert checks
        assert [check for check in checks if not check.ok] == []
