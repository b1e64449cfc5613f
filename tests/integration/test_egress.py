"""Egress with real programs in a real sandbox: curl, pip, npm and git work through it, and nothing goes around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from server.agent.launch import PROXY_VARIABLES
from server.concurrency import background_tasks
from server.egress import EgressProxy
from server.models import EventKind
from server.sandboxes.base import EGRESS_PORT, Limits
from server.sandboxes.bubblewrap.sandbox import BubblewrapSandbox
from tests.egress import Answer, Authority, head_of, page, rules, serving, stand_ins
from tests.house import bash, open_house, run, seen
from tests.sandboxes import python, sandbox_in
from tests.webs import git_host, make_repository, npm_registry, package_index

POLICY: Final = """\
version: 1
id: test/net
extends: workspace
rules:
  - id: net
    effect: allow
    because: a test
    network:
      - {host: good.example.com, ports: [80, 443]}
"""

Run = Callable[[str], Awaitable[str]]


async def hello(stream: Any) -> None:
    """A server with one page."""
    await head_of(stream)
    await stream.send(page(b"hello from outside"))


@asynccontextmanager
async def connected(home: Path, sites: dict[str, Answer]) -> AsyncIterator[Run]:
    """A sandbox whose policy allows these sites, each served with TLS of an authority that lies in ca.pem.

    What is yielded runs a shell script inside and gives its output.
    """
    async with AsyncExitStack() as stack:
        authority = Authority()
        ports = {
            host: await stack.enter_async_context(serving(answer, authority.server_context(host)))
            for host, answer in sites.items()
        }
        sandbox = await stack.enter_async_context(sandbox_in(home, Limits(processes=128)))
        tasks = await stack.enter_async_context(background_tasks())
        outlet = EgressProxy(tasks, stand_ins(ports)).open()
        outlet.allow(lambda: rules(*sites))
        assert sandbox.workspace is not None
        (sandbox.workspace / "ca.pem").write_bytes(authority.pem)
        (sandbox.workspace / "ca.pem").chmod(0o644)
        trust = ("CURL_CA_BUNDLE", "PIP_CERT", "npm_config_cafile", "GIT_SSL_CAINFO")
        variables = {**PROXY_VARIABLES, **dict.fromkeys(trust, "/workspace/ca.pem")}

        async def inside(script: str) -> str:
            done = await sandbox.run(["/bin/sh", "-c", script], env=variables, timeout_s=90, outlet=outlet)
            return (done.stdout + done.stderr).decode(errors="replace")

        yield inside


async def test_curl_reaches_an_allowed_host_and_no_other(tmp_path: Path) -> None:
    async with connected(tmp_path, {"good.example.com": hello}) as inside:
        assert await inside("curl -sS https://good.example.com/") == "hello from outside"
        assert "response 403" in await inside("curl -sS https://other.example.com/")
        assert "was refused: the policy does not allow it" in await inside("curl -sS http://other.example.com/")
        assert "Could not resolve host" in await inside("curl -sS --noproxy '*' https://good.example.com/")


async def test_pip_installs_from_an_allowed_index(tmp_path: Path) -> None:
    async with connected(tmp_path, {"index.example.com": package_index()}) as inside:
        said = await inside(
            "/usr/bin/python3 -m pip install -q --no-cache-dir --target=lib "
            "--index-url https://index.example.com/simple/ rookery-parcel"
            " && PYTHONPATH=lib /usr/bin/python3 -c 'import rookery_parcel; print(rookery_parcel.CONTENT)'"
        )
        assert said.strip().endswith("delivered by pip"), said


async def test_npm_installs_from_an_allowed_registry(tmp_path: Path) -> None:
    host = "registry.example.com"
    async with connected(tmp_path, {host: npm_registry(f"https://{host}")}) as inside:
        said = await inside(
            f"npm install --silent --no-audit --no-fund --fetch-retries=0 --registry=https://{host} rookery-parcel 2>&1"
            " && node -p 'require(\"rookery-parcel\")'"
        )
        assert said.strip().endswith("delivered by npm"), said


async def test_git_clones_from_an_allowed_host(tmp_path: Path) -> None:
    make_repository(tmp_path / "repositories", "team/project.git", [{"README": "delivered by git\n"}])
    async with connected(tmp_path / "home", {"git.example.com": git_host(tmp_path / "repositories")}) as inside:
        said = await inside("git clone -q https://git.example.com/team/project.git it && cat it/README")
        assert said.strip() == "delivered by git"


AROUND: Final = """
import errno, json, os, socket
found = {}
def attempt(name, work):
    try:
        work()
        found[name] = "worked"
    except OSError as error:
        found[name] = "failed"
def udp(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as it:
        it.sendto(b"x", address)
def tcp(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as it:
        it.settimeout(3)
        it.connect(address)
attempt("resolver", lambda: socket.getaddrinfo("secret.evil.example.com", 443))
attempt("dns udp", lambda: udp(socket.AF_INET, ("8.8.8.8", 53)))
attempt("dns tcp", lambda: tcp(socket.AF_INET, ("8.8.8.8", 53)))
attempt("quic", lambda: udp(socket.AF_INET, ("93.184.215.14", 443)))
attempt("ntp", lambda: udp(socket.AF_INET, ("162.159.200.1", 123)))
attempt("ipv6 udp", lambda: udp(socket.AF_INET6, ("2001:4860:4860::8888", 53)))
attempt("ipv6 tcp", lambda: tcp(socket.AF_INET6, ("2001:4860:4860::8888", 443)))
attempt("metadata", lambda: tcp(socket.AF_INET, ("169.254.169.254", 80)))
attempt("tcp", lambda: tcp(socket.AF_INET, ("93.184.215.14", 443)))
def icmp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as it:
        it.sendto(b"x", ("8.8.8.8", 0))
attempt("icmp", icmp)
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("abstract", lambda: tcp(socket.AF_UNIX, "\\0/tmp/.X11-unix/X0"))
found["dev tcp"] = "worked" if os.system("bash -c 'echo > /dev/tcp/8.8.8.8/53' 2>/dev/null") == 0 else "failed"
found["interfaces"] = sorted(os.listdir("/proc/sys/net/ipv4/conf"))
print(json.dumps(found))
"""


@pytest.mark.parametrize("with_proxy", [False, True])
async def test_x08_nothing_leads_out_beside_the_proxy(tmp_path: Path, *, with_proxy: bool) -> None:
    """X08: no resolver, no UDP, no ICMP, no IPv6, no /dev/tcp, whether the session has a network or not."""
    async with sandbox_in(tmp_path) as sandbox, background_tasks() as tasks:
        outlet = EgressProxy(tasks, stand_ins({})).open()
        outlet.allow(lambda: rules("*"))
        found = await python(sandbox, AROUND, outlet=outlet if with_proxy else None)
    assert found.pop("interfaces") == ["all", "default", "lo"]
    assert set(found.values()) == {"failed"}, found


async def test_x12_without_an_outlet_nothing_answers_inside(tmp_path: Path) -> None:
    async with sandbox_in(tmp_path) as sandbox:
        assert await _knock(sandbox) == "ConnectionRefusedError"


async def _knock(sandbox: BubblewrapSandbox) -> str:
    code = f"""
import json, socket
try:
    socket.create_connection(("127.0.0.1", {EGRESS_PORT}))
except OSError as error:
    print(json.dumps(type(error).__name__))
"""
    return str(await python(sandbox, code))


async def test_an_agent_reaches_what_its_policy_names_and_the_session_tells_of_it(tmp_path: Path) -> None:
    """X03 and X12: other hosts are refused, by name and by verb; each decision is in the session's log."""
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "net.yaml").write_text(POLICY)
    command = "curl -sS http://good.example.com/; curl -sS http://evil.example.com/; curl -sS https://evil.example.com"
    async with serving(hello) as port:
        network = stand_ins({"good.example.com": port, "evil.example.com": port})
        async with open_house(tmp_path / "home", network, policy_dir=policies) as registry:
            outcome = await run(registry, [bash(command), {"reply_with": "last_tool_result"}], policy="net")
            assert "hello from outside" in outcome.text
            assert "the policy does not allow it" in outcome.text
            assert "response 403" in outcome.text
            notice = await seen(registry, outcome.session_id, EventKind.NOTICE)
            assert "Network: allowed good.example.com:80" in notice.data["text"]
            assert "Network: refused evil.example.com:443 (the policy does not allow it)" in notice.data["text"]


async def test_an_agent_whose_policy_has_no_network_finds_no_proxy(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        steps = [bash("env | grep -ic _proxy; curl -sS http://good.example.com/"), {"reply_with": "last_tool_result"}]
        outcome = await run(registry, steps, policy="workspace")
        assert "\n0\n" in outcome.text
        assert "Could not resolve host" in outcome.text


async def test_a_warm_agent_with_a_network_obeys_the_policy_of_the_session_that_gets_it(tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "net.yaml").write_text(POLICY)
    steps = [bash("curl -sS http://good.example.com/"), {"reply_with": "last_tool_result"}]
    async with serving(hello) as port:
        network = stand_ins({"good.example.com": port})
        async with open_house(tmp_path / "home", network, policy_dir=policies, policy="net", warm=1) as registry:
            with anyio.fail_after(60):
                while len(list((tmp_path / "home" / "sandboxes").iterdir())) < 1:
                    await anyio.sleep(0.05)
            outcome = await run(registry, steps)
            assert outcome.text == "hello from outside"
