"""What all sandboxes of a provider share, found out once: the machine, and how a start on it is put together."""

from __future__ import annotations

import platform
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from server.errors import ErrorCode, RookeryError
from server.sandboxes.base import Limits
from server.sandboxes.bubblewrap.arguments import Sources, bubblewrap_options, inner_command
from server.sandboxes.bubblewrap.cgroups import ControlGroups
from server.sandboxes.bubblewrap.etc import prepare_etc
from server.sandboxes.bubblewrap.identity import identity_range
from server.sandboxes.bubblewrap.layout import SystemLayout
from server.sandboxes.bubblewrap.limits import resource_limits
from server.sandboxes.bubblewrap.sealed import sealed_copy
from server.sandboxes.bubblewrap.seccomp import filter_program
from server.sandboxes.bubblewrap.spawn import STAGE, Launch


@dataclass(frozen=True)
class Shown:
    """The places on the host that one start shows inside."""

    gateway_socket: Path
    workspace: Path
    config: Path | None


@dataclass(frozen=True)
class Machine:
    """This host, as far as sandboxes need to know it."""

    program: str
    """bubblewrap, absolute."""
    cli: Path
    """The CLI as installed."""
    home: Path
    layout: SystemLayout
    etc: Path
    seccomp: bytes
    groups: ControlGroups
    identities: range | None
    """The uids that sandboxes may have; None: only the server's own."""

    @property
    def sandboxes(self) -> Path:
        """Where the directories of all sandboxes lie."""
        return self.home / "sandboxes"

    @classmethod
    def prepare(cls, home: Path, cli: Path) -> Self:
        """Look at the host, and make the directories that all sandboxes share. Blocks for some milliseconds.

        Raises:
            RookeryError: ``sandbox_unavailable``, saying what is missing.
        """
        system = platform.system()
        if system != "Linux":
            raise unavailable(
                f"Bubblewrap sandboxes exist on Linux only, and this is {system}. "
                "Use a Linux machine, or ROOKERY_SANDBOX=e2b."
            )
        program = shutil.which("bwrap")
        if program is None:
            raise unavailable("bubblewrap is not installed. Install it: sudo apt-get install -y bubblewrap")
        try:
            seccomp = filter_program(platform.machine())
        except ValueError as error:
            raise unavailable(f"There is {error}.") from error
        layout = SystemLayout.of_this_machine()
        try:
            (home / "sandboxes").mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(
                program=str(Path(program).absolute()),
                cli=cli,
                home=home,
                layout=layout,
                etc=prepare_etc(home / "system", layout.etc),
                seccomp=seccomp,
                groups=ControlGroups(),
                identities=identity_range(),
            )
        except OSError as error:
            raise unavailable(
                "ROOKERY_HOME cannot be written to. Choose another directory, or mend its permissions.", error
            ) from error

    def launch(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        shown: Shown,
        limits: Limits,
        *,
        identity: int | None,
        groups: Sequence[str],
        listens: bool = False,
    ) -> Launch:
        """All that a start needs. Blocks when the CLI was not copied yet.

        Args:
            identity: the uid and gid to run under; None: the server's own.
            groups: the control groups to join.
            listens: whether an outlet will answer inside.

        Raises:
            RookeryError: ``sandbox_unavailable``; ``invalid_argument`` when a word or a variable is refused.
        """
        _check_gateway(shown.gateway_socket, others=identity is not None)
        try:
            cli = sealed_copy(self.cli, self.home)
        except OSError as error:
            raise unavailable("The agent CLI is missing, or there is no room for its copy.", error) from error
        places = {"etc": self.etc, "cli": cli, "gateway": shown.gateway_socket, "workspace": shown.workspace}
        if shown.config is not None:
            places["config"] = shown.config
        names = {name: str(path) if identity is None else f"{STAGE}/{name}" for name, path in places.items()}
        try:
            options = bubblewrap_options(
                Sources(
                    etc=names["etc"],
                    cli=names["cli"],
                    gateway_socket=names["gateway"],
                    workspace=names["workspace"],
                    config=names.get("config"),
                ),
                self.layout,
                limits,
                env,
                waits=listens,
            )
            command = inner_command(argv, processes=limits.processes)
        except ValueError as error:
            raise refused(error) from error
        return Launch(
            program=self.program,
            options=options,
            command=command,
            seccomp=self.seccomp,
            limits=resource_limits(limits),
            groups=groups,
            identity=identity,
            binds={} if identity is None else {name: str(path) for name, path in places.items()},
        )


def _check_gateway(address: Path, *, others: bool) -> None:
    """Fail now, with words, rather than let the agent fail later on a connection."""
    try:
        mode = address.stat().st_mode
    except OSError as error:
        raise unavailable("The model gateway is not running.", error) from error
    if not stat.S_ISSOCK(mode):
        raise unavailable("The model gateway is not running.", "its path is not a socket")
    if others and not mode & stat.S_IWOTH:
        raise unavailable(
            "The model gateway cannot be reached from a sandbox.",
            "the socket must be writable for others, and its directory must keep them out",
        )


def unavailable(message: str, detail: object = None) -> RookeryError:
    """``sandbox_unavailable`` with what the log should hold."""
    return RookeryError(ErrorCode.SANDBOX_UNAVAILABLE, message, detail=None if detail is None else str(detail))


def lost(detail: object) -> RookeryError:
    """``sandbox_lost`` with what the log should hold."""
    return RookeryError(
        ErrorCode.SANDBOX_LOST, "The sandbox of this session is gone. Start a new session.", detail=str(detail)
    )


def refused(cause: ValueError) -> RookeryError:
    """``invalid_argument`` for what would not be safe to take."""
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"The sandbox refused it: {cause}.")


def storage(cause: OSError) -> RookeryError:
    """``storage_unavailable`` for a disk that refused."""
    return RookeryError(
        ErrorCode.STORAGE_UNAVAILABLE,
        "The files of the sandbox could not be written. Make room on the disk and try again.",
        detail=str(cause),
    )
