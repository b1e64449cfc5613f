"""What of this machine's system a sandbox shows: decided once, by looking at the machine.

Programs come from ``/usr``, read-only, so that the agent finds the tools that are installed here (git, Python, Node,
compilers). ``/usr/local`` belongs to that, because container images keep their language there; the places below it
that hold settings or state (``etc``, ``var``) are covered. Of ``/etc`` only what the programs need to start is shown
(:data:`SHARED_ETC`); the rest is made by us. Nothing else of the machine is there: no ``/home``, ``/root``, ``/var``,
``/run``, ``/opt``, ``/srv``, ``/mnt``, ``/sys``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHARED_ETC: Final = (
    *("alternatives", "ld.so.cache", "protocols", "services", "mime.types"),
    *("ssl/certs", "pki/tls/certs", "pki/ca-trust/extracted"),
)
"""Entries of the machine's ``/etc`` shown inside: public tables that distributions ship, and the certificates of the
authorities that the machine trusts (Debian's place, and Fedora's), without which no program can speak TLS."""

_COVERED: Final = ("/usr/local/etc", "/usr/local/var")
_TOP: Final = ("/bin", "/lib", "/lib32", "/lib64", "/libx32", "/sbin")


@dataclass(frozen=True)
class SystemLayout:
    """The system directories of one machine, as a sandbox shows them."""

    links: tuple[tuple[str, str], ...]
    """Symbolic links at the top: (target, place), such as ``("usr/bin", "/bin")``."""
    directories: tuple[str, ...]
    """Directories shown read-only at their own place, ``/usr`` first."""
    covered: tuple[str, ...]
    """Directories below them that are hidden by an empty one."""
    etc: tuple[str, ...]
    """Names in the machine's ``/etc`` that are shown."""

    @classmethod
    def of_this_machine(cls, root: Path = Path("/")) -> SystemLayout:
        """Look at the machine; ``root`` is another place than ``/`` in tests only."""
        links: list[tuple[str, str]] = []
        directories = ["/usr"]
        for place in _TOP:
            path = root / place[1:]
            if path.is_symlink():
                links.append((str(path.readlink()).removeprefix("/"), place))
            elif path.is_dir():
                directories.append(place)
        return cls(
            links=tuple(links),
            directories=tuple(directories),
            covered=tuple(place for place in _COVERED if (root / place[1:]).is_dir()),
            etc=tuple(name for name in SHARED_ETC if (root / "etc" / name).exists()),
        )
