"""Ways out of a bubblewrap sandbox (rows S01 to S05 of the catalogue of attacks), tried for real."""

from __future__ import annotations

import errno
import json
import os
import platform
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from server.sandboxes.base import CLI, GATEWAY_SOCKET
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from server.sandboxes.bubblewrap.seccomp import NO_SUCH_CALL, REFUSED
from server.sandboxes.bubblewrap.syscalls import ARCHITECTURES, HIGHEST_REVIEWED
from tests.sandboxes import AGENT_COMMAND, AGENT_VARIABLES, PATIENCE_S, python, sandbox_in, shell

NUMBERS = ARCHITECTURES[platform.machine()].numbers

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
    public = ("alternatives", "ld.so.cache", "protocols", "services", "mime.types")
    trusted = ("ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted")
    etc = {f"/etc/{name}" for name in (*public, *trusted)}
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
