"""The file trees of sandboxes and templates.

A tree is a directory of this machine that becomes ``/`` of one sandbox; ``/usr`` of this machine is laid over it
read-only, so that its programs are there. All else is the sandbox's own and writable by its root.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.e2b_cloud.users import UserNamespace, chown_to

USER_ID: Final = 1000
"""Of ``user``, E2B's default user, who may become root there without a password."""

OVERLAID: Final = ("/usr", "/etc/alternatives", "/etc/ssl", "/etc/ca-certificates")
"""What every sandbox sees of this machine, read-only."""

FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    f"user:x:{USER_ID}:{USER_ID}::/home/user:/bin/bash\n",
    "etc/group": f"root:x:0:\nsudo:x:27:user\nshadow:x:42:\nuser:x:{USER_ID}:\nnogroup:x:65534:\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nuser:!:19000:0:99999:7:::\n",
    "etc/gshadow": "root:*::\nsudo:*::user\nuser:!::\n",
    "etc/sudoers": "user ALL=(ALL:ALL) NOPASSWD: ALL\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/hostname": "e2b.local\n",
    "etc/resolv.conf": "nameserver 8.8.8.8\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/login.defs": "MAIL_DIR /var/mail\nUID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\n"
    "UMASK 022\nUSERGROUPS_ENAB yes\n",
    "etc/profile": 'if [ "$(id -u)" -eq 0 ]; then\n'
    "  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nelse\n"
    "  PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games\nfi\nexport PATH\n"
    'for part in /etc/profile.d/*.sh; do [ -r "$part" ] && . "$part"; done; unset part\n',
    "etc/profile.d/claude.sh": '[ -x /opt/claude/bin/claude ] && PATH="$PATH:/opt/claude/bin"\n',
    "home/user/.profile": "",
}
DIRECTORIES: Final = (
    "usr", "proc", "dev", "sys", "etc/profile.d", "etc/alternatives", "etc/ssl", "etc/ca-certificates", "etc/skel",
    "root", "run", "tmp", "opt", "srv", "mnt", "code", "var/tmp", "var/log", "var/lib", "var/cache", "home/user",
    "opt/rookery", "opt/claude/bin",
)  # fmt: skip
LINKS: Final = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32")}


def make_tree(path: Path, namespace: UserNamespace) -> None:
    """A bare Debian as E2B's base image has it, as far as files matter."""
    path.mkdir(mode=0o755)
    for name in DIRECTORIES:
        (path / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, content in FILES.items():
        (path / name).write_text(content)
    for name, target in LINKS.items():
        if Path("/", target).exists():
            (path / name).symlink_to(target)
    (path / "var/run").symlink_to("/run")
    for name in ("tmp", "var/tmp"):
        (path / name).chmod(0o1777)
    (path / "root").chmod(0o700)
    for name in ("etc/shadow", "etc/gshadow", "etc/sudoers"):
        (path / name).chmod(0o400)
    for name in ("home/user", "home/user/.profile", "code"):
        chown_to(path / name, USER_ID, namespace)


def copy_tree(source: Path, target: Path, namespace: UserNamespace) -> None:
    """A whole tree, with owners, modes and links; blocks are shared where the file system can."""
    namespace.run("cp", "--archive", "--reflink=auto", "--no-target-directory", str(source), str(target))


def remove_tree(path: Path, namespace: UserNamespace) -> None:
    """A whole tree, whoever owns what in it."""
    namespace.run("rm", "--recursive", "--force", "--one-file-system", str(path))


def empty_run(path: Path, namespace: UserNamespace) -> None:
    """What a boot does to a tree."""
    namespace.run("find", str(path / "run"), "-mindepth", "1", "-delete")
