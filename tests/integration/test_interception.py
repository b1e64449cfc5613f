"""TLS interception through a whole session: real programs with no configuration of their own, servers of ours."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from server.models import EventKind
from tests.egress import Authority, head_of, page, serving, stand_ins
from tests.house import bash, events, open_house, run
from tests.webs import git_host, make_repository, npm_registry, package_index

POLICY: Final = """\
version: 1
extends: workspace
rules:
  - id: net
    effect: allow
    because: a test
    network:
      - {host: good.example.com, methods: [GET], paths: [/pages], intercept: true}
      - {host: index.example.com, methods: [GET, HEAD], paths: [/simple/, /files/], intercept: true}
      - {host: registry.example.com, methods: [GET], paths: [/rookery-parcel], intercept: true}
      - {host: git.example.com, methods: [GET, POST], paths: [/team/project.git], intercept: true}
      - {host: plain.example.com}
"""

SCRIPT: Final = r"""
exec 2>&1
curl -sS https://good.example.com/pages/1
curl -sS -X POST https://good.example.com/pages/1 | head -c 120; echo
curl -sS https://good.example.com/private | head -c 120; echo
curl -sS https://plain.example.com/pages/2
/usr/bin/python3 -c 'import urllib.request as u; print(u.urlopen("https://good.example.com/pages/3").read().decode())'
node -e 'require("http").request({host: "127.0.0.1", port: 3128, method: "CONNECT", path: "good.example.com:443"})
  .on("connect", (_, socket) => require("tls").connect({socket, servername: "good.example.com"}, function () {
    console.log("node trusts it:", this.authorized); this.end() }).on("error", error => console.log(error))).end()'
/usr/bin/python3 -m pip install -q --no-cache-dir --target=lib --index-url=https://index.example.com/simple/ \
  rookery-parcel
PYTHONPATH=lib /usr/bin/python3 -c 'import rookery_parcel; print(rookery_parcel.CONTENT)'
npm install --silent --no-audit --no-fund --fetch-retries=0 --registry=https://registry.example.com rookery-parcel
node -p 'require("rookery-parcel")'
git clone -q https://git.example.com/team/project.git it; cat it/README
git ls-remote -q https://git.example.com/team/other.git
grep -c PRIVATE "$SSL_CERT_FILE" "$NODE_EXTRA_CA_CERTS"
"""


async def echo(stream: Any) -> None:
    """A server that says which path was asked for."""
    head = await head_of(stream)
    await stream.send(page(b"page " + head.split()[1] + b"\n"))


async def test_x09_curl_pip_npm_git_python_and_node_work_through_an_opened_connection(tmp_path: Path) -> None:
    """Row X09: what the policy names by method and path gets through, and nothing else of the same host."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "net.yaml").write_text(POLICY)
    for name in ("project", "other"):
        make_repository(tmp_path / "repositories", f"team/{name}.git", [{"README": "delivered by git\n"}])
    sites = {
        "good.example.com": echo,
        "plain.example.com": echo,
        "index.example.com": package_index(),
        "registry.example.com": npm_registry("https://registry.example.com"),
        "git.example.com": git_host(tmp_path / "repositories"),
    }
    authority = Authority()
    async with AsyncExitStack() as stack:
        ports = {
            host: await stack.enter_async_context(serving(answer, authority.server_context(host)))
            for host, answer in sites.items()
        }
        network = replace(stand_ins(ports), trust=authority.pem)
        registry = await stack.enter_async_context(
            open_house(tmp_path / "home", network, policy_dir=tmp_path / "policies")
        )
        outcome = await run(registry, [bash(SCRIPT), {"reply_with": "last_tool_result"}], policy="net")
        said = outcome.text
        for expected in (
            "page /pages/1",
            "Rookery: POST good.example.com:443/pages/1 was refused: the policy does not allow it",
            "Rookery: GET good.example.com:443/private was refused: the policy does not allow it",
            "page /pages/2",
            "page /pages/3",
            "node trusts it: true",
            "delivered by pip",
            "delivered by npm",
            "delivered by git",
            "authorities.pem:0",
            "authority.pem:0",
        ):
            assert expected in said, said
        assert "The requested URL returned error: 403" in said
        notices = "\n".join(
            event.data["text"] for event in await events(registry, outcome.session_id) if event.kind is EventKind.NOTICE
        )
        assert "Network: allowed GET good.example.com:443" in notices
        assert "Network: refused POST good.example.com:443/pages/1 (the policy does not allow it)" in notices
