"""Whether this machine can make sandboxes, and the one line that mends it where it cannot."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from server.errors import RookeryError
from server.sandboxes.base import CLI, Check, SandboxSpec
from server.sandboxes.bubblewrap.cgroups import ControlGroups
from server.sandboxes.bubblewrap.directories import probe_id
from server.sandboxes.bubblewrap.identity import identity_range

if TYPE_CHECKING:
    from server.sandboxes.bubblewrap.provider import BubblewrapProvider

_OLDEST: Final = (0, 8)
"""The first bubblewrap with ``--disable-userns``."""
_TRIAL_S: Final = 30.0
_INSTALL: Final = "sudo apt-get install -y bubblewrap"
_APPARMOR_REMEDY: Final = (
    r"printf 'abi <abi/4.0>,\ninclude <tunables/global>\nprofile bwrap /usr/bin/bwrap flags=(unconfined) "
    r"{\n  userns,\n}\n' | sudo tee /etc/apparmor.d/bwrap && sudo apparmor_parser -r /etc/apparmor.d/bwrap"
)


async def probe(provider: BubblewrapProvider, cli: Path) -> list[Check]:
    """All findings, in the order in which they should be mended. The last tries a real sandbox; never raises."""
    if platform.system() != "Linux":
        found = f"{platform.system()}: bubblewrap exists on Linux only"
        return [Check("platform", False, found, "export ROOKERY_SANDBOX=e2b")]
    checks = [Check("platform", True, f"Linux {platform.release()}, {platform.machine()}")]
    checks += await anyio.to_thread.run_sync(_look, cli)
    if all(check.ok for check in checks):
        checks.append(await _trial(provider))
    return checks


def _look(cli: Path) -> list[Check]:
    return [_bubblewrap(), *_user_namespaces(), _cli(cli), _identity(), _control_groups()]


def _bubblewrap() -> Check:
    program = shutil.which("bwrap")
    if program is None:
        return Check("bubblewrap", False, "not installed", _INSTALL)
    try:
        text = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("bubblewrap", False, f"does not run: {error}", _INSTALL)
    numbers = re.search(r"(\d+)\.(\d+)", text)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        return Check("bubblewrap", False, f"{text.strip() or 'unknown version'}; 0.8.0 or newer is needed", _INSTALL)
    return Check("bubblewrap", True, text.strip())


def _setting(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text())
    except (OSError, ValueError):
        return None


def _user_namespaces() -> list[Check]:
    name = "user namespaces"
    if _setting("user/max_user_namespaces") == 0:
        return [Check(name, False, "forbidden by a limit", "sudo sysctl -w user.max_user_namespaces=15000")]
    if _setting("kernel/unprivileged_userns_clone") == 0:
        return [Check(name, False, "forbidden for users", "sudo sysctl -w kernel.unprivileged_userns_clone=1")]
    profiled = any(Path("/etc/apparmor.d", profile).exists() for profile in ("bwrap", "bwrap-userns-restrict"))
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == 1 and not profiled:
        return [Check(name, False, "forbidden by AppArmor for programs without a profile", _APPARMOR_REMEDY)]
    return [Check(name, True, "allowed")]


def _cli(cli: Path) -> Check:
    if not cli.is_file() or not os.access(cli, os.X_OK):
        return Check(
            "agent CLI", False, "not found or not executable", "pip install --force-reinstall claude-agent-sdk"
        )
    return Check("agent CLI", True, f"{cli.stat().st_size >> 20} MiB")


def _identity() -> Check:
    """For information: a sandbox without a uid of its own still has its own user namespace."""
    if os.geteuid() != 0:
        return Check("sandbox user", True, "the server's own user, in a user namespace")
    try:
        allowed = identity_range()
    except OSError:
        allowed = None
    if allowed is None:
        return Check("sandbox user", True, "the server's own user: this user namespace has no other to give")
    return Check("sandbox user", True, f"an unprivileged uid of its own for each ({allowed.start} and up)")


def _control_groups() -> Check:
    """For information: without them memory and CPU of a sandbox are not bounded."""
    controllers = ControlGroups().controllers
    if not controllers:
        remedy = "systemd-run --user --scope -p Delegate=yes rookery serve"
        return Check("control groups", True, "none to write to: memory and CPU are not bounded", remedy)
    missing = sorted({"memory", "pids", "cpu"} - controllers)
    text = ", ".join(sorted(controllers)) + (f"; not bounded: {', '.join(missing)}" if missing else "")
    return Check("control groups", True, text)


def _trial_remedy() -> str:
    """In a container the container's own walls are the usual cause; else bubblewrap itself says best what is wrong."""
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return (
            "docker run --cap-add SYS_ADMIN --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined ..."
        )
    return "bwrap --unshare-all --ro-bind / / --proc /proc --dev /dev true"


async def _trial(provider: BubblewrapProvider) -> Check:
    """Make a sandbox, run the CLI in it for its version, remove it."""
    started = time.monotonic()
    session_id = probe_id()
    try:
        # Not in the home: the path of a socket must be short.
        with tempfile.TemporaryDirectory(prefix="rookery-") as directory, socket.socket(socket.AF_UNIX) as listener:
            address = Path(directory) / "probe.sock"
            listener.bind(str(address))
            address.chmod(0o666)
            with anyio.fail_after(_TRIAL_S):
                sandbox = await provider.create(SandboxSpec(session_id=session_id, gateway_socket=address))
                try:
                    result = await sandbox.run([CLI, "--version"], timeout_s=_TRIAL_S)
                finally:
                    await sandbox.destroy()
    except RookeryError as error:
        return Check("trial", False, f"{error.message} ({error.detail})", _trial_remedy())
    except (OSError, TimeoutError) as error:
        return Check("trial", False, f"{type(error).__name__}: {error}", _trial_remedy())
    if result.exit_code != 0:
        text = result.stderr.decode(errors="replace").strip()[-500:]
        return Check("trial", False, f"the CLI ended with {result.exit_code}: {text}", "rookery doctor")
    spent = time.monotonic() - started
    return Check("trial", True, f"{result.stdout.decode(errors='replace').strip()}, {spent:.2f} s")
