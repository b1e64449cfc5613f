"""Workspaces from git: cloned over https from a host of the operator's list, and from nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from server.egress import EgressOptions
from server.errors import ErrorCode, RookeryError
from server.registry import Registry
from server.requests import ListRequest
from server.workspaces.cloning import Repository
from tests.egress import Authority, serving, stand_ins
from tests.house import ME, bash, open_house, run, settings_for
from tests.webs import git_host, make_repository

pytestmark = pytest.mark.providers

HOST = "git.example.com"
URL = f"https://{HOST}/team/project.git"


@asynccontextmanager
async def house_with_git(tmp_path: Path) -> AsyncIterator[tuple[Registry, list[str]]]:
    """A house whose operator allows one git host, which has one project; the ids of its commits."""
    commits = make_repository(
        tmp_path / "repositories",
        "team/project.git",
        [
            {"README": "first\n", ".gitattributes": "*.bin filter=lfs\n", "a.bin": "version https://git-lfs\n"},
            {"README": "second\n", ".gitmodules": '[submodule "x"]\n\tpath = x\n\turl = https://evil.example.com/x\n'},
        ],
    )
    authority = Authority()
    async with serving(git_host(tmp_path / "repositories"), authority.server_context(HOST)) as port:
        network = EgressOptions(stand_ins({}).lookup, loopback={HOST: port}, trust=authority.pem)
        async with open_house(tmp_path / "home", network, git_hosts=(HOST,)) as registry:
            yield registry, commits


async def test_a_workspace_is_cloned_at_any_ref_and_its_sandbox_has_no_network_of_it(tmp_path: Path) -> None:
    async with house_with_git(tmp_path) as (registry, commits):
        for ref, expected in (
            (None, "second"),
            ("v1", "first"),
            (commits[0][:10], "first"),
        ):
            outcome = await run(
                registry,
                [
                    bash("cat README; git log -1 --format=%H; git config remote.origin.url; ls .git/hooks 2>&1; env"),
                    {"reply_with": "last_tool_result"},
                ],
                workspace={"git": URL, **({} if ref is None else {"ref": ref})},
            )
            assert outcome.error is None
            assert outcome.text.startswith(expected)
            assert commits[expected == "second"] in outcome.text
            assert URL in outcome.text
            assert "pre-commit" not in outcome.text
            assert "3128" not in outcome.text
        homes = [path.name for path in (tmp_path / "home" / "sandboxes").iterdir() if not path.name.startswith(".")]
        assert len(homes) == 3, "the throw-away sandboxes are gone"


async def test_a_clone_that_fails_says_why(tmp_path: Path) -> None:
    async with house_with_git(tmp_path) as (registry, _):
        for source, words in (
            ({"git": f"https://{HOST}/team/nothing.git"}, "not found"),
            ({"git": URL, "ref": "no-such-branch"}, "no-such-branch"),
            ({"git": URL, "ref": "deadbeef"}, "deadbeef"),
        ):
            with pytest.raises(RookeryError, match=words) as caught:
                await run(registry, "hello", workspace=source)
            assert caught.value.code is ErrorCode.INVALID_ARGUMENT
            assert "could not clone" in caught.value.message


async def test_a_repository_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.workspaces.cloning.MAX_FILES", 5)
    async with house_with_git(tmp_path) as (registry, _):
        with pytest.raises(RookeryError, match="more than 5 files"):
            await run(registry, "hello", workspace={"git": URL})


async def test_x11_an_allowed_git_host_that_leads_to_a_private_address_is_not_reached(tmp_path: Path) -> None:
    async def private(host: str, port: int) -> list[str]:
        return ["10.0.0.7"]

    async with open_house(tmp_path, EgressOptions(private), git_hosts=(HOST,)) as registry:
        with pytest.raises(RookeryError, match="403"):
            await run(registry, "hello", workspace={"git": URL})


@pytest.mark.parametrize(
    "url",
    [
        "http://git.example.com/a/b",
        "file:///etc",
        "/etc",
        "ext::sh -c id",
        "git@git.example.com:a/b",
        "ssh://git.example.com/a/b",
        "git://git.example.com/a/b",
        "https://user:secret@git.example.com/a/b",
        "https://token@git.example.com/a/b",
        "https://git.example.com:8443/a/b",
        "https://git.example.com",
        "https://git.example.com/",
        "https://git.example.com/a/../b",
        "https://git.example.com/a//b",
        "https://git.example.com/a%2fb",
        "https://git.example.com/a?b=c",
        "https://git.example.com/a#b",
        "https://git.example.com/a\nb",
        "https://git.example.com/a b",
        "https://git.example.com\\@evil.com/a",
        "https://git.example.com.evil.com/a/b",
        "https://evil.com/git.example.com/b",
        "https://sub.git.example.com/a/b",
        "https://127.0.0.1/a/b",
        "https://[::1]/a/b",
        "https://gít.example.com/a/b",
        "--upload-pack=id",
        "https://git.example.com/" + "a" * 2000,
    ],
)
def test_x10_a_url_that_is_no_plain_https_url_of_an_allowed_host_is_refused(tmp_path: Path, url: str) -> None:
    settings = settings_for(tmp_path, git_hosts=(HOST,))
    with pytest.raises(RookeryError, match=HOST) as caught:
        Repository.parse({"git": url}, settings)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "ref", ["--upload-pack=id", "-b", "", "a..b", "a b", "a\nb", "@{u}", "a:b", "x.lock", "^a", "~"]
)
def test_s11_a_ref_that_git_could_take_for_something_else_is_refused(tmp_path: Path, ref: str) -> None:
    with pytest.raises(RookeryError, match="ref must be"):
        Repository.parse({"git": URL, "ref": ref}, settings_for(tmp_path, git_hosts=(HOST,)))


def test_a_host_is_compared_without_case(tmp_path: Path) -> None:
    found = Repository.parse({"git": "https://GIT.example.COM/a/b.git"}, settings_for(tmp_path, git_hosts=(HOST,)))
    assert found.url == "https://git.example.com/a/b.git"
    assert found.egress.permits(HOST, 443)
    assert not found.egress.permits(HOST, 80)
    assert not found.egress.permits("example.com", 443)


async def test_spawning_with_a_refused_url_leaves_no_session(tmp_path: Path) -> None:
    async with open_house(tmp_path) as registry:
        with pytest.raises(RookeryError, match="allowed hosts: github"):
            await run(registry, "hello", workspace={"git": "https://evil.example.com/a/b"})
        assert not (await registry.list(ME, ListRequest())).sessions
