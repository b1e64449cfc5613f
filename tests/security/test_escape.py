"""Ways out of a bubblewrap sandbox (rows S01 to S11 of the catalogue of attacks), tried for real."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CLI, CONFIG_DIR, GATEWAY_SOCKET
from server.sandboxes.bubblewrap import BubblewrapProvider
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from server.sandboxes.bubblewrap.seccomp import NO_SUCH_CALL, REFUSED
from server.sandboxes.bubblewrap.syscalls import ARCHITECTURES, HIGHEST_REVIEWED
from tests.sandboxes import PATIENCE_S, bundled_cli, gateway_socket, python, sandbox_in, shell, spec_for

NUMBERS = ARCHITECTURES[platform.machine()].numbers

AGENT_COMMAND = [
    *(CLI, "--input-format", "stream-json", "--output-format", "stream-json", "--verbose"),
    *("--setting-sources=", "--strict-mcp-config"),
]
AGENT_VARIABLES = {
    "CLAUDE_CONFIG_DIR": CONFIG_DIR,
    "ANTHROPIC_UNIX_SOCKET": GATEWAY_SOCKET,
    "ANTHROPIC_BASE_URL": "http://gateway",
    "ANTHROPIC_API_KEY": "token",
}

CALL = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(word) for word in words])
    return 0 if result >= 0 else ctypes.get_errno()
"""
"""Python for inside: ``call(number, …)`` gives the error number of a raw system call, 0 when it succeeded."""


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[BubblewrapSandbox]:
    """A sandbox in a home of its own."""
    async with sandbox_in(tmp_path) as sandbox:
        yield sandbox


def processes_of(reference: Mapping[str, Any]) -> list[int]:
    """All live processes of this machine that belong to a sandbox: by its uid, and by what is mounted for them.

    Without zombies: the namespace's first process is inherited, and reaped, by the first process of the machine.
    """
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                own_uid = reference["uid"] != os.geteuid() and path.stat().st_uid == reference["uid"]
                zombie = "\nState:\tZ" in (path / "status").read_text()
                if (own_uid and not zombie) or reference["id"] in (path / "mountinfo").read_text():
                    found.append(int(path.name))
    return found


async def until_gone(reference: Mapping[str, Any]) -> None:
    """Wait until no process of a sandbox is left; for ends that nobody waits for."""
    with anyio.fail_after(PATIENCE_S):
        while processes_of(reference):
            await anyio.sleep(0.01)


async def test_s01_nothing_can_be_typed_into_a_terminal(sandbox: BubblewrapSandbox) -> None:
    """S01: TIOCSTI and TIOCLINUX, also with bits set above the 32 that the kernel looks at."""
    code = f"""{CALL}
import pty
parent, terminal = pty.openpty()
print(json.dumps([call({NUMBERS["ioctl"]}, terminal, request, id(b"x") + 32)
    for low in (0x5412, 0x541C) for request in (low, low | 1 << 32, low | 0xdead << 40)]))
"""
    assert await python(sandbox, code) == [errno.EPERM] * 6


async def test_s01_there_is_no_controlling_terminal(sandbox: BubblewrapSandbox) -> None:
    """S01: the agent's session is its own and has no terminal."""
    assert await shell(sandbox, "exec 3< /dev/tty && echo open") != "open"
    assert await python(sandbox, "import json, os; print(json.dumps([os.getsid(0), os.isatty(0)]))") == [1, False]


async def test_s02_dangerous_system_calls_are_refused(sandbox: BubblewrapSandbox) -> None:
    """S02: tracing, mounts, namespaces, BPF, io_uring, keyrings, perf, modules."""
    names = [name for name in (*REFUSED, *NO_SUCH_CALL) if name in NUMBERS]
    code = f"{CALL}\nprint(json.dumps([call(number, 0, 0, 0, 0, 0, 0) for number in {[NUMBERS[n] for n in names]}]))"
    expected = {name: errno.ENOSYS if name in NO_SUCH_CALL else errno.EPERM for name in names}
    assert dict(zip(names, await python(sandbox, code), strict=True)) == expected


async def test_s02_calls_of_the_future_and_of_another_abi_do_not_exist(sandbox: BubblewrapSandbox) -> None:
    """S02: new system calls slip through lists of old ones (CVE-2021-41133); x32 has numbers of its own."""
    numbers = [HIGHEST_REVIEWED + 1, 600, 0x4000_0000 + 39, 0x4000_0000 + 520]
    code = f"{CALL}\nprint(json.dumps([call(number, 0, 0, 0, 0, 0, 0) for number in {numbers}]))"
    assert await python(sandbox, code) == [errno.ENOSYS] * 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the 32-bit entry is a matter of x86")
async def test_s02_a_32_bit_system_call_ends_the_process(sandbox: BubblewrapSandbox) -> None:
    """S02: the 32-bit numbers mean other calls than those the filter knows."""
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000" "cd80" "c3"))  # mov eax, 20 (getpid); int 0x80; ret
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))(), flush=True)
"""
    result = await sandbox.run(["python3", "-c", code])
    assert result.stdout == b""
    assert result.exit_code - 128 in (signal.SIGSYS, signal.SIGSEGV)


async def test_s02_no_namespace_can_be_made_inside(sandbox: BubblewrapSandbox) -> None:
    """S02: nested user namespaces are where kernel bugs are reached from."""
    flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    code = f"{CALL}\nprint(json.dumps([call({NUMBERS['clone']}, flag | 17, 0, 0, 0, 0) for flag in {flags}]))"
    assert await python(sandbox, code) == [errno.EPERM] * len(flags)
    assert (await sandbox.run(["unshare", "--user", "true"])).exit_code != 0
    assert await shell(sandbox, "bwrap --unshare-user --ro-bind / / true >/dev/null 2>&1 && echo out") == ""


async def test_s02_there_are_no_privileges_and_none_can_be_gained(sandbox: BubblewrapSandbox) -> None:
    """S02: no capability, no gain by set-uid programs."""
    status = await shell(sandbox, "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status | tr -s '\\t ' ' '")
    wanted = [f"Cap{kind}: {0:016x}" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")]
    assert status.splitlines() == [*wanted, "NoNewPrivs: 1", "Seccomp: 2"]
    assert "nosuid" in await shell(sandbox, "grep ' /usr ' /proc/self/mounts")


async def test_s03_no_process_of_the_host_or_of_another_sandbox_is_visible(
    sandbox: BubblewrapSandbox, tmp_path: Path
) -> None:
    """S03: /proc shows the sandbox's own processes only."""
    async with sandbox_in(tmp_path / "other") as other:
        agent = await other.start_agent(["sleep", "6543"], {})
        commands = await shell(sandbox, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
        await agent.terminate()
    assert "6543" not in commands
    assert "pytest" not in commands
    pids = await python(sandbox, "import json, os; print(json.dumps([p for p in os.listdir('/proc') if p.isdigit()]))")
    assert len(pids) <= 3


async def test_s03_the_environment_of_the_server_cannot_be_read(
    sandbox: BubblewrapSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S03: not even from the sandbox's first process, which came from the server."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-canary")
    found = await shell(sandbox, "cat /proc/[0-9]*/environ | tr '\\0' '\\n'; env; cat /proc/self/mountinfo")
    assert "canary" not in found
    assert "PYTEST" not in found


SHOUT = """
import json, os
found = {}
for process in os.environ["PROCESSES"].split():
    for name in ("mem", "fd/0", "fd/1", "fd/2", "environ", "cwd"):
        try:
            os.close(os.open(f"/proc/{process}/{name}", os.O_RDONLY if name in ("environ", "cwd") else os.O_RDWR))
        except OSError as error:
            continue
        found[f"{process} {name}"] = "open"
print(json.dumps(found))
"""


async def test_s03_a_command_of_the_agent_cannot_reach_into_the_cli(sandbox: BubblewrapSandbox) -> None:
    """S03: neither the CLI's streams nor its memory can be opened by what runs beside it under the same uid.

    Through either, a command could forge what the CLI says to the host. The second process is the real CLI, started
    by a shell that first leaves the spy behind.
    """
    # The spy waits until the shell has become the CLI: then the CLI's answer to our first request came.
    script = f"(read -r go < /workspace/go; PROCESSES='2' python3 -c '{SHOUT}' > /workspace/found) & exec \"$@\""
    await shell(sandbox, "mkfifo go")
    request = {"type": "control_request", "request_id": "1", "request": {"subtype": "initialize", "hooks": None}}
    agent = await sandbox.start_agent(
        ["/bin/sh", "-c", script, "sh", *AGENT_COMMAND],
        AGENT_VARIABLES,
    )
    try:
        await agent.write(json.dumps(request).encode() + b"\n")
        with anyio.fail_after(PATIENCE_S):
            assert b"control_response" in await agent.read()
            await shell(sandbox, "echo go > go; while ! test -s found; do sleep 0.05; done")
        assert json.loads(await shell(sandbox, "cat found")) == {}
        assert agent.returncode is None
    finally:
        await agent.terminate()


async def test_s03_the_first_process_holds_no_stream_of_the_agent(sandbox: BubblewrapSandbox) -> None:
    """S03: bubblewrap's own process inside can be written into, so it must hold nothing that the host believes."""
    code = "import json, os; print(json.dumps({n: os.readlink(f'/proc/1/fd/{n}') for n in os.listdir('/proc/1/fd')}))"
    held = await python(sandbox, code)
    own = await python(
        sandbox, "import json, os; print(json.dumps([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1)]))"
    )
    assert all(stream.startswith("socket:") for stream in own)
    assert held["0"] == held["1"] == "/dev/null"
    assert [target for target in held.values() if target.startswith("socket:")] == [held["2"]]


async def test_s04_only_what_we_put_there_is_mounted(sandbox: BubblewrapSandbox) -> None:
    """S04: no socket of docker, D-Bus, X11, ssh-agent or systemd; no home, no /var, no /run of the host."""
    places = set((await shell(sandbox, "cut -d ' ' -f 5 /proc/self/mountinfo")).split())
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty", "pts", "shm")}
    etc = {f"/etc/{name}" for name in ("alternatives", "ld.so.cache", "protocols", "services", "mime.types")}
    own = {"/", "/usr", "/etc", "/proc", "/dev", "/tmp", "/home/agent", "/workspace", CLI, GATEWAY_SOCKET}
    assert own <= places
    assert places <= own | devices | etc | {"/usr/local/etc", "/usr/local/var", "/bin", "/sbin", "/lib", "/lib64"}
    code = """
import json, os, stat
places = [os.path.join(top, name) for root in os.listdir("/") if root not in ("usr", "proc")
    for top, _, names in os.walk("/" + root) for name in names]
print(json.dumps([path for path in places if stat.S_ISSOCK(os.lstat(path).st_mode)]))
"""
    assert await python(sandbox, code) == [GATEWAY_SOCKET]
    top = {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "opt", "proc", "run", "sbin", "tmp", "usr"}
    assert set((await shell(sandbox, "ls /")).split()) <= top | {"workspace"}


async def test_s04_secrets_of_the_host_are_not_there(sandbox: BubblewrapSandbox) -> None:
    """S04: accounts, keys, homes and settings of the machine."""
    for path in ("/etc/shadow", "/etc/ssh", "/etc/ssl/private", "/root", "/var", "/sys", "/home/agent/.ssh", "/mnt"):
        assert await shell(sandbox, f"test -e {path} && echo there") == "", path
    assert "agent" in await shell(sandbox, "cat /etc/passwd")
    assert len((await shell(sandbox, "cat /etc/passwd")).splitlines()) == 3
    assert await shell(sandbox, "hostname; cat /etc/hostname") == "sandbox\nsandbox"


async def test_s04_the_system_cannot_be_written_to(sandbox: BubblewrapSandbox) -> None:
    """S04: everything but the workspace and the agent's own memory file systems is read-only."""
    for path in ("/usr/x", "/etc/x", "/x", "/dev/x", "/opt/rookery/x", "/run/rookery/x", "/usr/local/etc/x", "/home/x"):
        assert "Read-only" in await shell(sandbox, f"touch {path}"), path
    assert "Read-only" in await shell(sandbox, f"chmod 755 {CLI}")
    assert "denied" in await shell(sandbox, f"head -c 4 {CLI}")
    for attempt in (f"rm {GATEWAY_SOCKET}", f"mv {CLI} /tmp", f"echo > {CLI}"):
        assert (await sandbox.run(["/bin/sh", "-c", attempt])).exit_code != 0, attempt
    assert await shell(sandbox, "for d in /tmp /home/agent /dev/shm /workspace; do touch $d/x || echo no; done") == ""


async def test_s05_sockets_of_the_host_are_out_of_reach(sandbox: BubblewrapSandbox) -> None:
    """S05 and X08: abstract sockets, loopback, networks, names; there is no way out but the gateway's socket."""
    name = f"\0rookery-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as local:
        abstract.bind(name)
        abstract.listen()
        port = local.getsockname()[1]
        code = f"""
import json, socket
def reach(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        try:
            s.connect(address)
            s.send(b"x")
        except OSError as error:
            return type(error).__name__
    return "open"
inet, inet6, unix = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM
found = [reach(unix, tcp, {name!r}), reach(inet, tcp, ("127.0.0.1", {port})), reach(inet, tcp, ("1.1.1.1", 443)),
    reach(inet, udp, ("1.1.1.1", 53)), reach(inet, udp, ("169.254.169.254", 80)),
    reach(inet6, tcp, ("2606:4700:4700::1111", 443)), reach(inet6, udp, ("ff02::1", 53))]
try:
    socket.getaddrinfo("example.com", 80)
    found.append("open")
except OSError as error:
    found.append(type(error).__name__)
print(json.dumps([found, [name for _, name in socket.if_nameindex()], reach(unix, tcp, {GATEWAY_SOCKET!r})]))
"""
        found, interfaces, gateway = await python(sandbox, code)
    assert "open" not in found
    assert interfaces == ["lo"]
    assert gateway == "open"


async def test_s05_only_plain_socket_families_exist(sandbox: BubblewrapSandbox) -> None:
    """S05: vsock, packet, alg, bluetooth, and netlink beyond the list of interfaces."""
    refused = [(40, 1, 0), (17, 3, 0), (38, 5, 0), (31, 3, 0), (16, 3, 9), (16, 3, 16), (29, 3, 1), (44, 3, 0)]
    allowed = [(1, 1, 0), (2, 1, 0), (2, 2, 0), (10, 1, 0), (16, 3, 0)]
    code = f"""{CALL}
families = {refused + allowed}
print(json.dumps([call({NUMBERS["socket"]}, f | high, k, p) for f, k, p in families for high in (0, 1 << 32)]))
"""
    assert await python(sandbox, code) == [errno.EAFNOSUPPORT] * 16 + [0] * 10


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 3)
        os.chdir("/")
        open("/workspace/up", "w").close()
        while True:
            time.sleep(1)
    os._exit(0)
while not os.path.exists("/workspace/up"):
    time.sleep(0.01)
print("up", flush=True)
"""


async def test_s06_a_daemon_does_not_outlive_the_agent_that_ends_by_itself(sandbox: BubblewrapSandbox) -> None:
    """S06: setsid and a double fork are no way to stay."""
    agent = await sandbox.start_agent(["python3", "-c", DAEMON], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
        assert await agent.wait() == 0
    await until_gone(sandbox.reference)
    await agent.terminate()


async def test_s06_a_daemon_does_not_outlive_the_end_of_the_agent(sandbox: BubblewrapSandbox) -> None:
    """S06: nothing is left the moment that terminate returns, and nothing of its control group."""
    agent = await sandbox.start_agent(["python3", "-c", DAEMON + "time.sleep(600)"], {})
    with anyio.fail_after(PATIENCE_S):
        assert await agent.read() == b"up\n"
    group = sandbox.control_group
    assert len(processes_of(sandbox.reference)) >= 3
    await agent.terminate()
    assert processes_of(sandbox.reference) == []
    assert group is not None
    assert not any(Path(file).exists() for file in group.joins)


async def test_s06_a_start_that_is_cancelled_leaves_nothing_at_any_moment(sandbox: BubblewrapSandbox) -> None:
    """S06 and P03: at every few milliseconds of a start, which takes some thirty."""
    for milliseconds in range(0, 60, 3):
        with anyio.move_on_after(milliseconds / 1000):
            await sandbox.start_agent(["sleep", "600"], {})
        await sandbox.stop()
        assert processes_of(sandbox.reference) == []
    assert sandbox.control_group is None
    assert await shell(sandbox, "echo fine") == "fine"


SERVER = """
import asyncio, json, sys
from pathlib import Path
from tests.sandboxes import sandbox_in

async def main():
    async with sandbox_in(Path(sys.argv[1])) as sandbox:
        agent = await sandbox.start_agent(["python3", "-c", sys.argv[2]], {})
        await agent.read()
        print(json.dumps(sandbox.reference), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_s06_killing_the_server_kills_its_sandboxes(tmp_path: Path) -> None:
    """S06 and C01: kill -9 of the server, through launcher, bubblewrap and its init."""
    command = [sys.executable, "-c", SERVER, str(tmp_path), DAEMON + "time.sleep(600)"]
    async with await anyio.open_process(command, stderr=None, cwd=Path(__file__).parents[2]) as server:
        try:
            assert server.stdout is not None
            with anyio.fail_after(PATIENCE_S):
                reference = json.loads(await server.stdout.receive())
            assert len(processes_of(reference)) >= 3
        finally:
            server.kill()
    await until_gone(reference)


@pytest.mark.parametrize("fault", ["missing", "failing", "hanging up"])
async def test_s07_a_sandbox_that_cannot_start_is_an_error_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """S07: never unsandboxed."""
    programs = tmp_path / "programs"
    programs.mkdir()
    if fault != "missing":
        fake = programs / "bwrap"
        fake.write_text("#!/bin/sh\n" + ("echo no namespaces >&2; exit 1\n" if fault == "failing" else "exit 0\n"))
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("server.sandboxes.bubblewrap.spawn.STAGE", "/mnt")
    witness = tmp_path / "witness"
    with gateway_socket() as gateway:
        provider = BubblewrapProvider(tmp_path / "home", bundled_cli())
        with pytest.raises(RookeryError) as caught:
            sandbox = await provider.create(spec_for(gateway))
            await sandbox.start_agent(["/bin/touch", str(witness)], {})
        checks = await provider.probe()
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert not witness.exists()
    assert any(not check.ok and check.remedy for check in checks)


@pytest.mark.parametrize(("function", "answer"), [("system", "Darwin"), ("machine", "riscv64")])
async def test_s07_an_unknown_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, answer: str
) -> None:
    """S07: no filter for the architecture, or no Linux: no sandbox."""
    monkeypatch.setattr(platform, function, lambda: answer)
    with gateway_socket() as gateway, pytest.raises(RookeryError) as caught:
        await BubblewrapProvider(tmp_path, bundled_cli()).create(spec_for(gateway))
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    assert answer in caught.value.message


async def test_s07_a_gateway_that_is_gone_is_told_before_the_agent_starts(tmp_path: Path) -> None:
    """S07: no agent without its only way to a model."""
    with gateway_socket() as gateway:
        sandbox = await BubblewrapProvider(tmp_path, bundled_cli()).create(spec_for(gateway))
    with pytest.raises(RookeryError) as caught:
        await sandbox.start_agent([CLI, "--version"], {})
    assert caught.value.code is ErrorCode.SANDBOX_UNAVAILABLE
    await sandbox.destroy()


async def test_s08_the_cli_itself_runs_inside(sandbox: BubblewrapSandbox) -> None:
    """S08: not its shell commands only: its own file and web tools too are held by the same walls."""
    agent = await sandbox.start_agent(
        AGENT_COMMAND,
        AGENT_VARIABLES,
    )
    try:
        [cli] = [
            Path(f"/proc/{process}")
            for process in processes_of(sandbox.reference)
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(CLI.encode())
        ]
        for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
            assert os.readlink(cli / "ns" / kind) != os.readlink(f"/proc/self/ns/{kind}"), kind
        status = (cli / "status").read_text()
        assert "Seccomp:\t2\n" in status
        assert "NoNewPrivs:\t1\n" in status
        assert f"CapEff:\t{0:016x}\n" in status
        assert f"Uid:\t{sandbox.reference['uid']}\t" in status
        assert sandbox.reference["uid"] != 0
    finally:
        await agent.terminate()


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "NODE_OPTIONS", "PYTHONSTARTUP", "TERMINAL", "a=b", "1a", ""]
)
async def test_s10_variables_that_load_code_are_refused(sandbox: BubblewrapSandbox, name: str) -> None:
    """S10: environment variables injected into a start."""
    for start in (sandbox.run, sandbox.start_agent):
        with pytest.raises(RookeryError) as caught:
            await start(["true"], env={name: "/workspace/evil"})
        assert caught.value.code is ErrorCode.INVALID_ARGUMENT


@pytest.mark.parametrize("argv", [["--bind", "/", "/mnt"], ["-c"], [], [""], ["a\0b"], ["true", "\0"]])
async def test_s11_a_command_cannot_be_taken_for_options(sandbox: BubblewrapSandbox, argv: list[str]) -> None:
    """S11: a word that begins with a dash in the place of a program."""
    with pytest.raises(RookeryError) as caught:
        await sandbox.run(argv)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT


async def test_s11_words_of_a_command_reach_it_as_they_are(sandbox: BubblewrapSandbox) -> None:
    """S11: options for bubblewrap or the shell among the arguments are nothing but arguments."""
    words = ["--bind", "/", "/mnt", "--", "-c", "$(id)", "a'b\"c\n", ""]
    result = await sandbox.run(["python3", "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *words])
    assert json.loads(result.stdout) == words


@pytest.mark.parametrize("session_id", ["-rf", "../up", ".trash-1", "", "a/b", "a\nb", "x" * 200])
async def test_s11_a_session_id_cannot_name_another_directory(tmp_path: Path, session_id: str) -> None:
    """S11: ids are checked although they are ours."""
    with gateway_socket() as gateway:
        spec = spec_for(gateway)
        spec = type(spec)(session_id=session_id, gateway_socket=gateway)
        with pytest.raises(RookeryError) as caught:
            await BubblewrapProvider(tmp_path, bundled_cli()).create(spec)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert list(tmp_path.iterdir()) == []
