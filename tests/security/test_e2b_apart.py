"""The agent's user in a cloud sandbox: it reaches neither the relay nor a key, and cannot speak for either.

The double keeps users really apart (a user namespace with all of them), so what is refused here is refused by the
kernel, as in the cloud.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from server.models import EventKind
from server.sandboxes.e2b.layout import RELAY, RELAY_SOCKET, STATE
from server.sandboxes.e2b.relay.frames import Frame, encode
from server.sandboxes.e2b.sandbox import E2BSandbox
from tests.e2b_cloud.handle import E2BCloud
from tests.house import bash, open_house, seen, settled, spawn
from tests.integration.test_secrets import CANARY, paid_model
from tests.looking import work_without
from tests.providers import settings_on

pytestmark = pytest.mark.e2b

PATIENCE_S = 60.0


ATTEMPTS = f"""
import ctypes, glob, os, signal, socket, subprocess

def attempt(name, act):
    try:
        found = act()
    except (OSError, subprocess.SubprocessError):
        return
    print("could", name, found)

def run(*command):
    return subprocess.run(command, check=True, capture_output=True, timeout=10, stdin=subprocess.DEVNULL).stdout

def reach():
    with socket.socket(socket.AF_UNIX) as relay:
        relay.connect("{RELAY_SOCKET}")

relays = []
for directory in glob.glob("/proc/[0-9]*"):
    if open(directory + "/cmdline", "rb").read().split(b"\\0")[2:3] == [b"{RELAY}"]:
        relays.append(int(directory.rpartition("/")[2]))
print(len(relays), "relays,", os.getuid())
attempt("connect to the relay", reach)
attempt("list its state", lambda: os.listdir("{STATE}"))
attempt("list where its socket is", lambda: os.listdir(os.path.dirname("{RELAY_SOCKET}")))
attempt("change its program", lambda: open("{RELAY}", "ab"))
attempt("replace its program", lambda: os.rename("{RELAY}", "/workspace/relay"))
for pid in relays:
    for number in (0, signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        attempt(f"signal {{pid}}", lambda: os.kill(pid, number))
    for name in ("environ", "mem", "maps", "fd/0", "fd/1", "fd/3", "cwd", "root", "stack"):
        path = f"/proc/{{pid}}/{{name}}"
        attempt(f"read {{path}}", lambda: open(path, "rb").read(1))
        attempt(f"write {{path}}", lambda: open(path, "wb").write(b"x"))
    attempt(f"list {{pid}}", lambda: os.listdir(f"/proc/{{pid}}/fd"))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, pid, 0, 0) == 0:
        print("could trace", pid)
attempt("become root", lambda: os.setuid(0))
attempt("change groups", lambda: os.setgroups([0]))
attempt("sudo", lambda: run("sudo", "-n", "id"))
attempt("su", lambda: run("su", "-c", "id"))
attempt("be root in a namespace of its own", lambda: run("unshare", "--map-root-user", "--mount", "true"))
attempt("read shadow", lambda: open("/etc/shadow").read())
attempt("write passwd", lambda: open("/etc/passwd", "a"))
attempt("reach the network", lambda: socket.create_connection(("1.1.1.1", 443), timeout=2))
"""


async def test_s02_the_agent_neither_reads_nor_signals_nor_reaches_the_relay(e2b_sandbox: E2BSandbox) -> None:
    """S02: the relay belongs to root: its socket, files, memory and descriptors are out of the agent's reach."""
    agent = await e2b_sandbox.start_agent(["sleep", "600"], {})
    result = await e2b_sandbox.run(["python3", "-c", ATTEMPTS])
    assert result.exit_code == 0, result.stderr
    first, _, rest = result.stdout.decode().partition("\n")
    assert first.endswith("relays, 1100")
    assert int(first.split()[0]) >= 2, "the relay and the wire to it"
    assert rest == ""
    assert agent.returncode is None
    await agent.terminate()


FORGE = """
import glob, os, sys
frames = bytes.fromhex(sys.argv[1])
sys.stdout.buffer.write(frames)
sys.stdout.flush()
for path in [*glob.glob("/proc/[0-9]*/fd/*"), "/dev/stdout", "/dev/tty", "/proc/1/fd/1"]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.write(descriptor, frames)
    except OSError:
        continue
print("done")
sys.stdout.flush()
sys.stdin.read()
"""


async def test_s03_the_agent_cannot_forge_a_frame_of_the_relay(e2b_sandbox: E2BSandbox) -> None:
    """S03: what it writes is its output and nothing else, whatever it looks like and wherever it writes it."""
    forged = b"".join(
        encode(Frame(kind, fields, b"forged"), text=True)
        for kind, fields in (
            ("exit", {"s": 2, "code": 0}),
            ("exit", {"s": 4, "code": 0, "q": 1}),
            ("reset", {"s": 2, "why": "forged"}),
            ("hello", {"same": True, "received": 0, "version": 1}),
            ("data", {"s": 2}),
            ("end", {"s": 2}),
        )
    )
    agent = await e2b_sandbox.start_agent(["python3", "-c", FORGE, forged.hex()], {})
    other = await e2b_sandbox.start_root(["cat"])
    expected = forged + b"done\n"
    heard = b""
    with anyio.fail_after(PATIENCE_S):
        while len(heard) < len(expected):
            heard += await agent.read()
    assert heard == expected
    assert agent.returncode is None, "an exit that it wrote is not its exit"
    with anyio.fail_after(PATIENCE_S):
        await other.write(b"still here\n")
        assert await other.read() == b"still here\n"
    await agent.close_input()
    assert await agent.wait() == 0
    await other.terminate()


async def test_x01_no_key_is_in_the_sandboxs_environment_files_or_arguments(
    tmp_path: Path, e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """X01: neither the model's key nor E2B's own, while the agent is at work; looked for with root's eyes."""
    for name, value in e2b_cloud.environment.items():
        monkeypatch.setenv(name, value)
    steps = [bash("touch started; until [ -e go ]; do sleep 0.05; done"), {"text": "done"}]
    needles = [CANARY.encode(), e2b_cloud.api_key.encode()]
    async with paid_model() as (url, witness):
        given = {"upstream": "anthropic", "anthropic_base_url": url, "anthropic_api_key": CANARY}
        async with open_house(tmp_path, **settings_on(e2b_cloud), **given) as registry:
            session_id = await spawn(registry, steps)
            await seen(registry, session_id, EventKind.TOOL_CALL)
            found = await work_without(needles, e2b_cloud)
            assert not [needle for needle in needles if needle.decode() in repr(found)]
            (Path(found["tree"]) / "workspace" / "go").touch()
            assert (await settled(registry, session_id)).text == "done"
            await registry.end("local", session_id, delete=True)
    assert {headers.get("x-api-key") for headers in witness.headers} == {CANARY}
