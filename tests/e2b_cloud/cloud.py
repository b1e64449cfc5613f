"""The state of the double: its accounts, templates, sandboxes and snapshots, and what can be done with them."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tests.e2b_cloud.egress import Egress
from tests.e2b_cloud.faults import Faults
from tests.e2b_cloud.machine import Machine
from tests.e2b_cloud.processes import Cut
from tests.e2b_cloud.sandbox import Sandbox, Settings
from tests.e2b_cloud.trees import copy_tree, empty_run, make_tree, remove_tree
from tests.e2b_cloud.users import UserNamespace

DEFAULT_TIMEOUT_S: Final = 300
CLI_INSIDE: Final = "/opt/claude/bin/claude"
"""Where the ready-made template ``claude`` has the agent's program."""


class RefusedError(Exception):
    """An answer of the control plane that is an error."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass
class Template:
    """What a sandbox begins as. A snapshot is one, too."""

    identity: str
    owner: str
    tree: Path
    names: set[str] = field(default_factory=set)
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "user"
    cwd: str = ""
    start_command: str = ""
    cpus: int = 2
    memory_mb: int = 1024
    snapshot_of: str | None = None
    mounts: Mapping[str, Path] = field(default_factory=dict)


@dataclass
class Plan:
    """What an account may have."""

    concurrent: int = 1000
    per_second: float = 1000.0
    longest_s: int = 24 * 3600


class Cloud:
    """See the module. ``cli``: the agent's program on this machine, shown in template ``claude``."""

    def __init__(self, api_keys: list[str], cli: Path | None) -> None:
        self.api_keys = api_keys
        self.cli = cli
        self.namespace = UserNamespace.make()
        self.home = Path(tempfile.mkdtemp(prefix="e2b-"))
        self.home.chmod(0o755)
        self.plan = Plan()
        self.faults = Faults()
        self.egress = Egress(self.home)
        self.sandboxes: dict[str, Sandbox] = {}
        self.templates: dict[str, Template] = {}
        self.ended: dict[str, str] = {}
        """Sandboxes that are no more, and why."""
        self._created: list[float] = []
        self._repeats: dict[tuple[str, str], asyncio.Task[Sandbox]] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._expiring: set[asyncio.Task[None]] = set()
        make_tree(self.home / "base", self.namespace)
        base = Template("base", "", self.home / "base", {"base"})
        claude = replace(base, identity="claude", names={"claude"})
        if cli is not None:
            claude.mounts = {CLI_INSIDE: cli}
            claude.variables = {"PATH": "/opt/claude/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.templates = {"base": base, "claude": claude}

    # Templates.

    def template(self, name: str, owner: str) -> Template:
        """By its id or one of its names.

        Raises:
            RefusedError: 404.
        """
        plain = name.rpartition("/")[2]
        for template in self.templates.values():
            named = template.identity == plain or plain in template.names or plain.partition(":")[0] in template.names
            if named and template.owner in ("", owner):
                return template
        raise RefusedError(404, f"template '{name}' not found")

    # A sandbox's life.

    def lock(self, identity: str) -> asyncio.Lock:
        """One change of state at a time for each sandbox."""
        return self._busy.setdefault(identity, asyncio.Lock())

    def get(self, identity: str, owner: str) -> Sandbox:
        """A living sandbox of an account.

        Raises:
            RefusedError: 404.
        """
        sandbox = self.sandboxes.get(identity)
        if sandbox is None or sandbox.owner != owner:
            raise RefusedError(404, f"sandbox {identity} not found")
        return sandbox

    async def create_once(self, owner: str, key: str | None, request: Mapping[str, Any]) -> Sandbox:
        """Create a sandbox, or find the one that this key made before."""
        if key is None:
            return await self.create(owner, request)
        earlier = self._repeats.get((owner, key))
        if earlier is not None and earlier.done() and (earlier.exception() or not self._lives(earlier.result())):
            earlier = None
        if earlier is None:
            earlier = self._repeats[(owner, key)] = asyncio.create_task(self.create(owner, request))
        return await asyncio.shield(earlier)

    def _lives(self, sandbox: Sandbox) -> bool:
        return self.sandboxes.get(sandbox.identity) is sandbox

    async def create(self, owner: str, request: Mapping[str, Any]) -> Sandbox:
        """Create a sandbox.

        Raises:
            RefusedError: 400 for bad arguments, 404 for the template, 429 for the plan's limits.
        """
        template = self.template(request["templateID"], owner)
        timeout_s = self.checked_timeout(request.get("timeout", DEFAULT_TIMEOUT_S))
        self._admit(owner, 1)
        settings = Settings(
            template=template.identity,
            metadata=dict(request.get("metadata") or {}),
            variables={**template.variables, **(request.get("envVars") or {})},
            network=dict(request.get("network") or {}),
            auto_pause=bool(request.get("autoPause", False)),
            auto_pause_memory=bool(request.get("autoPauseMemory", True)),
            auto_resume=bool((request.get("autoResume") or {}).get("enabled", False)),
            allow_internet_access=request.get("allow_internet_access"),
            default_user=template.user,
            default_cwd=template.cwd,
            start_command=template.start_command,
            mounts=template.mounts,
        )
        return await self.boot(owner, template.tree, settings, timeout_s)

    async def boot(self, owner: str, source: Path, settings: Settings, timeout_s: float) -> Sandbox:
        """A new machine on a copy of a tree."""
        identity = "i" + secrets.token_hex(10)
        tree = self.home / identity
        sandbox = Sandbox(identity, owner, f"ea_{secrets.token_hex(16)}", tree, settings)
        self.sandboxes[identity] = sandbox
        try:
            await asyncio.to_thread(copy_tree, source, tree, self.namespace)
            if source != self.home / "base":
                await asyncio.to_thread(empty_run, tree, self.namespace)
            await self._power_on(sandbox)
        except BaseException:
            await self.kill(sandbox, "it did not boot")
            raise
        self.set_end(sandbox, timeout_s)
        return sandbox

    async def _power_on(self, sandbox: Sandbox) -> None:
        """Boot a sandbox's machine and run what its template starts."""
        users = UserNamespace.make()
        try:
            network = sandbox.settings.network
            mounts = {**sandbox.settings.mounts, **self.egress.shown(sandbox.identity, network)}
            sandbox.take(await Machine.boot(sandbox.tree, users, mounts))
        finally:
            users.close()
        assert sandbox.machine is not None
        sandbox.opening = await self.egress.open(sandbox.owner, network, sandbox.machine)
        if sandbox.settings.start_command:
            argv = ["/bin/bash", "-l", "-c", sandbox.settings.start_command]
            process = await sandbox.start(argv, user=None, cwd="", variables={}, stdin=False)
            process.run(process.pid)

    async def kill(self, sandbox: Sandbox, reason: str) -> None:
        """End a sandbox and remove its files."""
        self.sandboxes.pop(sandbox.identity, None)
        self.ended[sandbox.identity] = reason
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        await sandbox.end_machine()
        await asyncio.to_thread(remove_tree, sandbox.tree, self.namespace)

    def checked_timeout(self, seconds: float) -> float:
        """A life time that the plan allows."""
        if seconds < 0:
            raise RefusedError(400, "Timeout cannot be negative")
        if seconds > self.plan.longest_s:
            raise RefusedError(400, f"Timeout cannot be greater than {self.plan.longest_s // 3600} hours")
        return seconds

    def _admit(self, owner: str, count: int) -> None:
        """Whether the plan allows so many new running sandboxes now."""
        running = sum(1 for one in self.sandboxes.values() if one.owner == owner and not one.paused)
        if running + count > self.plan.concurrent:
            raise RefusedError(
                429,
                f"you have reached the maximum number of concurrent E2B sandboxes ({self.plan.concurrent})",
                {"Should-Retry": "false"},
            )
        now = time.monotonic()
        self._created = [moment for moment in self._created if moment > now - 1]
        if len(self._created) + count > self.plan.per_second:
            raise RefusedError(429, "sandbox creation rate limit exceeded", {"Retry-After": "1"})
        self._created += [now] * count

    def set_end(self, sandbox: Sandbox, timeout_s: float) -> None:
        """Let a sandbox live so long from now, but in one stretch no longer than the plan has it."""
        now = time.time()
        sandbox.timeout_s = timeout_s
        timeout_s = min(timeout_s, max(0.0, sandbox.awake_since + self.plan.longest_s - now))
        sandbox.ends = now + timeout_s
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        sandbox.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, sandbox)

    def _expire(self, sandbox: Sandbox) -> None:
        task = asyncio.create_task(self._at_end(sandbox))
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _at_end(self, sandbox: Sandbox) -> None:
        async with self.lock(sandbox.identity):
            if not self._lives(sandbox) or sandbox.paused:
                return
            if sandbox.settings.auto_pause:
                await self.pause(sandbox, memory=sandbox.settings.auto_pause_memory)
            else:
                await self.kill(sandbox, "its time was over")

    # Pause and resume. Callers hold the sandbox's lock.

    async def pause(self, sandbox: Sandbox, *, memory: bool) -> None:
        """Stop it; its streams break off.

        Raises:
            RefusedError: 409, it is paused already.
        """
        if sandbox.paused:
            raise RefusedError(409, f"sandbox {sandbox.identity} is already paused")
        sandbox.paused = True
        sandbox.pause_mode = "full" if memory else "filesystem"
        if sandbox.timer is not None:
            sandbox.timer.cancel()
        if memory and sandbox.machine is not None:
            if not self.faults.silent_pause:
                sandbox.cut_streams(Cut("dropped", ""))
            await sandbox.machine.freeze()
        else:
            await sandbox.end_machine()

    async def resume(self, sandbox: Sandbox, timeout_s: float, *, memory: bool) -> None:
        """Let it go on, or boot it anew when its memory was not kept or is not wanted."""
        self._admit(sandbox.owner, 1)
        if not memory or sandbox.machine is None:
            await sandbox.end_machine()
            await asyncio.to_thread(empty_run, sandbox.tree, self.namespace)
            await self._power_on(sandbox)
        assert sandbox.machine is not None
        if paths := self.faults.half_restored:
            answer, _ = await sandbox.machine.ask("lose", paths=paths)
            self.faults.lost.extend(answer["lost"])
        if memory:
            await sandbox.machine.thaw()
        sandbox.paused = False
        sandbox.awake_since = time.time()
        self.set_end(sandbox, timeout_s)

    # Copies.

    async def copy(self, sandbox: Sandbox, count: int, timeout_s: float) -> list[Sandbox]:
        """Forks: the disk is copied, the copies boot anew, for processes cannot be copied here."""
        self._admit(sandbox.owner, count)
        frozen = sandbox.machine is not None and not sandbox.paused
        if frozen and sandbox.machine is not None:
            await sandbox.machine.freeze()
        try:
            return [
                await self.boot(sandbox.owner, sandbox.tree, replace(sandbox.settings), timeout_s) for _ in range(count)
            ]
        finally:
            if frozen and sandbox.machine is not None:
                await sandbox.machine.thaw()

    async def snapshot(self, sandbox: Sandbox, name: str | None) -> Template:
        """A lasting copy that sandboxes can be made of."""
        identity = "s" + secrets.token_hex(10)
        settings = sandbox.settings
        template = Template(
            identity, sandbox.owner, self.home / identity, {name} if name else set(), dict(settings.variables),
            settings.default_user, settings.default_cwd, settings.start_command,
            snapshot_of=sandbox.identity, mounts=settings.mounts,
        )  # fmt: skip
        await asyncio.to_thread(copy_tree, sandbox.tree, template.tree, self.namespace)
        self.templates[identity] = template
        return template

    async def end_build(self, sandbox: Sandbox, template: Template) -> None:
        """A builder's tree becomes a template, in the place of an older one of that name."""
        await sandbox.end_machine()
        for older in [one for one in self.templates.values() if one.owner == template.owner]:
            if older.snapshot_of is None and older.names & template.names:
                await self.remove_template(older)
        await asyncio.to_thread(sandbox.tree.rename, template.tree)
        self.templates[template.identity] = template
        await self.kill(sandbox, "its build ended")

    async def remove_template(self, template: Template) -> None:
        """Forget a template or snapshot."""
        self.templates.pop(template.identity, None)
        await asyncio.to_thread(remove_tree, template.tree, self.namespace)

    async def reset(self) -> list[str]:
        """End everything and forget all faults; the sandboxes that lived."""
        living = sorted(self.sandboxes)
        for sandbox in list(self.sandboxes.values()):
            await self.kill(sandbox, "the double was reset")
        for template in [one for one in self.templates.values() if one.owner]:
            await self.remove_template(template)
        self.faults.clear()
        self.plan = Plan()
        self.egress.secrets.clear()
        self.egress.upstreams.clear()
        self._repeats.clear()
        self.ended.clear()
        return living

    async def close(self) -> None:
        """End everything for good."""
        await self.reset()
        await asyncio.to_thread(remove_tree, self.home, self.namespace)
        shutil.rmtree(self.home, ignore_errors=True)
        self.namespace.close()
