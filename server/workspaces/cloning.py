"""A workspace from a git repository: cloned in a throw-away sandbox, of which only the files are kept.

git is a large program that reads what strangers wrote, so the host never runs it. The throw-away sandbox reaches one
host and nothing else, knows no credentials, and runs no hook, filter, helper or submodule of the repository
(row S11 of the security catalogue, and the CVEs on hostile repositories).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import anyio
import structlog

from policies.hosts import Egress, HostRule, HostRules
from server.agent.launch import PROXY
from server.egress import EgressOutlet
from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import CommandResult, Sandbox, SandboxSpec
from server.services import Services
from server.settings import Settings

log = structlog.get_logger(__name__)

CLONE_TIMEOUT_S: Final = 300.0
"""Longest single run of git."""

MAX_FILES: Final = 200_000
"""Entries of a cloned tree, those in its .git included."""

MAX_URL: Final = 1_000
MAX_REASON: Final = 200

_URL: Final = re.compile(r"https://([A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+)((?:/[A-Za-z0-9._~+-]+)+/?)", re.ASCII)
_REF: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-fA-F]{4,64}", re.ASCII)
_COMMAND_NOT_FOUND: Final = 127
_AUTHORITIES: Final = "/tmp/authorities.pem"  # noqa: S108 - the sandbox's own

OPTIONS: Final[Mapping[str, str]] = {
    "protocol.allow": "never",
    "protocol.https.allow": "always",
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.askPass": "/bin/false",
    "credential.helper": "",
    "filter.lfs.smudge": "",
    "filter.lfs.process": "",
    "filter.lfs.required": "false",
    "submodule.recurse": "false",
    "init.templateDir": "",
    "http.proxy": PROXY,
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "30",
    "advice.detachedHead": "false",
}
"""What git is told on its command line, which outranks every file."""

VARIABLES: Final[Mapping[str, str]] = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_LFS_SKIP_SMUDGE": "1",
}


@dataclass(frozen=True)
class Repository:
    """A repository that may be cloned."""

    host: str
    url: str
    ref: str | None

    @classmethod
    def parse(cls, source: Mapping[str, Any], settings: Settings) -> Self:
        """Read ``{"git": url, "ref": …}``.

        Raises:
            RookeryError: ``invalid_argument``, saying what is allowed.
        """
        url, ref = str(source["git"]), source.get("ref")
        allowed = ", ".join(settings.git_hosts) or "none: set ROOKERY_GIT_HOSTS"
        match = _URL.fullmatch(url) if len(url) <= MAX_URL else None
        if match is None or any(part in (".", "..") for part in match[2].split("/")):
            raise invalid(
                "git must be a plain https URL such as https://github.com/owner/repository, without credentials, "
                f"port, query or escapes (allowed hosts: {allowed})"
            )
        host = match[1].lower()
        if host not in settings.git_hosts:
            raise invalid(f"git may not come from {host[:100]} (allowed hosts: {allowed})")
        if ref is not None and (not _REF.fullmatch(ref) or ".." in ref or ref.endswith((".lock", "/", "."))):
            raise invalid("ref must be the name of a branch or tag, or a commit, such as main, v1.2 or 4f9c2ab")
        return cls(host, f"https://{host}{match[2]}", ref)

    @property
    def egress(self) -> Egress:
        """The one host, on the one port."""
        return Egress((HostRules((HostRule(self.host),)),))


async def clone(services: Services, sandbox: Sandbox, source: Mapping[str, Any]) -> None:
    """Fill a new sandbox's workspace with a repository.

    Raises:
        RookeryError: ``invalid_argument``: it cannot be cloned (with git's reason), or is too large; ``timeout``;
            ``sandbox_unavailable``; what ``unpack`` raises.
    """
    repository = Repository.parse(source, services.settings)
    spec = SandboxSpec(
        session_id=services.clock.session_id(),
        gateway_socket=services.gateway.socket,
        limits=services.limits,
        labels={"server": services.server_id, "clone": "true"},
    )
    outlet = services.egress.open()
    outlet.allow(lambda: repository.egress)
    services.scratch.add(spec.session_id)
    try:
        scratch = await services.providers.named(str(sandbox.reference.get("kind"))).create(spec)
        try:
            await _Clone(scratch, outlet, services.egress.options.trust).run(repository)
            await sandbox.unpack(await scratch.pack())
        finally:
            with anyio.CancelScope(shield=True):
                await _destroy(scratch)
    finally:
        services.scratch.discard(spec.session_id)
        outlet.close()


async def _destroy(scratch: Sandbox) -> None:
    try:
        await scratch.destroy()
    except RookeryError as error:
        log.warning("a clone's sandbox was not removed whole; the janitor will", error=str(error))


class _Clone:
    """git in a throw-away sandbox."""

    def __init__(self, scratch: Sandbox, outlet: EgressOutlet, trust: bytes) -> None:
        self._scratch = scratch
        self._outlet = outlet
        self._trust = trust

    async def run(self, repository: Repository) -> None:
        """Clone into the workspace, as little as the ref needs.

        Raises:
            RookeryError: ``invalid_argument``, ``timeout``, ``sandbox_unavailable``.
        """
        shallow = ["clone", "--quiet", "--depth=1", "--no-tags"]
        target = ["--", repository.url, "."]
        if repository.ref is None:
            await self._check(await self._git([*shallow, *target]))
        else:
            done = await self._git([*shallow, f"--branch={repository.ref}", *target])
            if done.exit_code != 0 and _COMMIT.fullmatch(repository.ref):
                # A server need not give single commits away, and none looks abbreviated ones up.
                await self._check(await self._git(["clone", "--quiet", "--no-checkout", *target]))
                done = await self._git(["checkout", "--quiet", "--detach", repository.ref, "--"])
            await self._check(done)
        counted = await self._scratch.run(["find", ".", "-mindepth", "1", "-printf", "."], max_output=MAX_FILES + 1)
        if counted.exit_code != 0 or len(counted.stdout) > MAX_FILES:
            raise invalid(f"the repository holds more than {MAX_FILES:,} files")

    async def _git(self, words: Sequence[str]) -> CommandResult:
        options = [f"{name}={value}" for name, value in OPTIONS.items()]
        prefix: list[str] = []
        if self._trust:
            options.append(f"http.sslCAInfo={_AUTHORITIES}")
            prefix = ["/bin/sh", "-c", f'cat > {_AUTHORITIES}; exec "$@"', "sh"]
        command = [*prefix, "git", *(word for option in options for word in ("-c", option)), *words]
        return await self._scratch.run(
            command, stdin=self._trust, env=VARIABLES, timeout_s=CLONE_TIMEOUT_S, outlet=self._outlet
        )

    async def _check(self, done: CommandResult) -> None:
        if done.exit_code == 0:
            return
        if done.exit_code == _COMMAND_NOT_FOUND:
            raise RookeryError(
                ErrorCode.SANDBOX_UNAVAILABLE, "git is not installed on the server's machine; install it."
            )
        log.info("clone failed", status=done.exit_code, stderr=done.stderr[-2_000:].decode(errors="replace"))
        raise invalid(f"git could not clone the repository: {_reason(done.stderr)}")


def _reason(stderr: bytes) -> str:
    """git's own last word, in one printable line."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    fatal = [line.removeprefix("fatal: ") for line in lines if line.startswith("fatal: ")]
    said = (fatal or lines or ["it gave no reason"])[-1]
    return "".join(character for character in said if character.isprintable())[:MAX_REASON]


def invalid(what: str) -> RookeryError:
    """``invalid_argument`` about the workspace."""
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"workspace: {what}.")
