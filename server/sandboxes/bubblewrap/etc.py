"""The ``/etc`` of every sandbox: a handful of files made here, the same for all.

The machine's own would tell the agent about its users, its network and its secrets. The files lie in one directory
on the host that is shown read-only; entries that come from the machine (:mod:`.layout`) get an empty place in it, to
be covered when the sandbox starts.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HOST_NAME: Final = "sandbox"
USER: Final = "agent"
UID: Final = 1000
"""The agent's user and group id inside, whatever they are outside."""
HOME: Final = "/home/agent"

_FILES: Final = {
    "passwd": f"""\
root:x:0:0:root:/nonexistent:/usr/sbin/nologin
{USER}:x:{UID}:{UID}:Agent:{HOME}:/bin/bash
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
""",
    "group": f"""\
root:x:0:
tty:x:5:
{USER}:x:{UID}:
nogroup:x:65534:
""",
    "hosts": f"""\
127.0.0.1 localhost {HOST_NAME}
::1 localhost ip6-localhost ip6-loopback
""",
    "hostname": f"{HOST_NAME}\n",
    "nsswitch.conf": """\
passwd: files
group: files
hosts: files
networks: files
protocols: files
services: files
""",
    "resolv.conf": "# There is no network in here.\n",
    "profile": "umask 022\n",
    "shells": "/bin/sh\n/bin/bash\n",
}
_LINKS: Final = {"os-release": "../usr/lib/os-release", "mtab": "../proc/self/mounts"}


def prepare_etc(parent: Path, shared: Sequence[str], machine: Path = Path("/etc")) -> Path:
    """Make the directory below ``parent`` unless it is there already, whole; it is never changed afterwards.

    Args:
        parent: a directory that only the server can write to.
        shared: names of ``machine`` that will be covered by the machine's own entry.
        machine: where to look whether a shared name is a directory.

    Returns:
        The directory, named after its content.

    Raises:
        OSError: it cannot be written.
    """
    places = {name: (machine / name).is_dir() for name in shared}
    digest = hashlib.sha256(repr((sorted(_FILES.items()), sorted(_LINKS.items()), sorted(places.items()))).encode())
    final = parent / f"etc-{digest.hexdigest()[:16]}"
    if final.is_dir():
        return final
    draft = parent / f".{final.name}-{secrets.token_hex(8)}"
    draft.mkdir(mode=0o755, parents=True)
    for name, content in _FILES.items():
        (draft / name).write_text(content)
    for name, target in _LINKS.items():
        (draft / name).symlink_to(target)
    for name, is_directory in places.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).mkdir() if is_directory else (draft / name).touch()
    for path in [draft, *draft.rglob("*")]:
        if not path.is_symlink():
            # Whatever the server's umask is, the agent's uid must be able to read here.
            path.chmod(0o755 if path.is_dir() else 0o644)
    try:
        draft.rename(final)
    except OSError:
        # Another server on the same home was first; its content is the same by name.
        shutil.rmtree(draft, ignore_errors=True)
        if not final.is_dir():
            raise
    return final
