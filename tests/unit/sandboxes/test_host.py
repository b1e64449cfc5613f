"""What the provider makes of a host: its control groups, uids, files of /etc, the sealed CLI."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from server.sandboxes.base import Limits
from server.sandboxes.bubblewrap import launcher, probe, sealed
from server.sandboxes.bubblewrap.cgroups import ControlGroups
from server.sandboxes.bubblewrap.etc import prepare_etc
from server.sandboxes.bubblewrap.identity import choose_identity, identity_range
from server.sandboxes.bubblewrap.limits import CPU_SHARES, NICENESS
from server.sandboxes.bubblewrap.provider import BubblewrapProvider


def fake_hierarchy(tmp_path: Path, own: str, mount: str) -> tuple[Path, Path]:
    """A /proc that says where this process is, and a directory in the place of /sys/fs/cgroup."""
    root = tmp_path / "cgroup"
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own)
    (tmp_path / "proc/self/mountinfo").write_text(mount.format(root=root))
    return tmp_path / "proc", root


class Directory:
    """Makes the control files that a kernel would make in a new group."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
        made = Path.mkdir

        def mkdir(path: Path, *words: object, **named: object) -> None:
            made(path, *words, **named)  # type: ignore[arg-type] # handed on as it came
            if path.name.startswith("rookery-"):
                for name in names:
                    (path / name).touch()

        def rmdir(path: Path) -> None:
            for file in path.iterdir():
                file.unlink()
            os.rmdir(path)

        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "rmdir", rmdir)


UNIFIED = "30 20 0:26 / {root} rw - cgroup2 cgroup2 rw\n"


def test_a_delegated_ancestor_serves_in_version_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, root = fake_hierarchy(tmp_path, "0::/user.slice/app.slice/run.scope\n", UNIFIED)
    scope = root / "user.slice/app.slice/run.scope"
    scope.mkdir(parents=True)
    for directory, offered in ((scope, ""), (scope.parent, "cpu memory pids\n"), (root / "user.slice", "memory")):
        (directory / "cgroup.subtree_control").write_text(offered)
        (directory / "cgroup.procs").touch()
    names = ("cgroup.procs", "cgroup.kill", "memory.max", "pids.max", "cpu.max", "cpu.weight.nice", "memory.events")
    Directory(monkeypatch, names)
    groups = ControlGroups(proc, root)
    assert groups.controllers == {"cpu", "memory", "pids"}
    group = groups.create(Limits(memory_mb=256, processes=20, cpus=1.5))
    (directory,) = {Path(file).parent for file in group.joins}
    assert directory.parent == scope.parent
    assert (directory / "memory.max").read_text() == str(256 << 20)
    assert (directory / "pids.max").read_text() == "24"
    assert (directory / "cpu.max").read_text() == "150000 100000"
    assert (directory / "cpu.weight.nice").read_text() == str(NICENESS)
    (directory / "memory.events").write_text("low 0\noom_kill 2\n")
    assert group.memory_kills() == 2
    group.kill()
    assert (directory / "cgroup.kill").read_text() == "1"
    assert group.remove()
    assert not directory.exists()


def test_version_one_serves_below_the_own_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = "3:pids:/\n2:cpu,cpuacct:/a\n4:memory:/b/c\n1:name=systemd:/x\n0::/\n"
    mounts = "".join(
        f"3{n} 20 0:26 / {{root}}/{name} rw - cgroup cgroup rw,{name}\n"
        for n, name in enumerate(("pids", "cpu,cpuacct", "memory", "freezer"))
    )
    proc, root = fake_hierarchy(tmp_path, own, mounts)
    for name in ("pids", "cpu,cpuacct/a", "memory/b/c"):
        (root / name).mkdir(parents=True)
    cpu = ("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares")
    Directory(monkeypatch, ("cgroup.procs", "memory.limit_in_bytes", "pids.max", *cpu))
    groups = ControlGroups(proc, root)
    assert groups.controllers == {"cpu", "memory", "pids"}
    group = groups.create(Limits(memory_mb=256))
    directories = {str(Path(file).parents[1].relative_to(root)): Path(file).parent for file in group.joins}
    assert set(directories) == {"pids", "cpu,cpuacct/a", "memory/b/c"}
    assert (directories["cpu,cpuacct/a"] / "cpu.shares").read_text() == str(CPU_SHARES)
    assert group.remove()


def test_a_machine_without_writable_groups_has_none(tmp_path: Path) -> None:
    proc, root = fake_hierarchy(tmp_path, "0::/a\n", UNIFIED)
    (root / "a").mkdir(parents=True)
    (root / "a" / "cgroup.subtree_control").write_text("")
    for groups in (ControlGroups(proc, root), ControlGroups(tmp_path / "nothing", root)):
        assert groups.controllers == frozenset()
        group = groups.create(Limits())
        assert group.joins == []
        group.kill()
        assert group.remove()


def test_groups_of_dead_servers_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, root = fake_hierarchy(tmp_path, "1:pids:/\n", "30 20 0:26 / {root} rw - cgroup cgroup rw,pids\n")
    root.mkdir()
    Directory(monkeypatch, ("cgroup.procs", "pids.max"))
    groups = ControlGroups(proc, root)
    for name in ("rookery-4194305-0123456789abcdef", f"rookery-{os.getpid()}-0123456789abcdef", "other"):
        (root / name).mkdir()
    groups.sweep()
    assert {path.name for path in root.iterdir()} == {f"rookery-{os.getpid()}-0123456789abcdef", "other"}


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ("0 0 4294967295", range(1_900_000_000, 2_100_000_000)),
        ("0 100000 65536", range(32768, 61440)),
        ("0 1000 1", None),
        ("0 1000 1\n1 100000 65536", range(32769, 61441)),
    ],
)
def test_uids_are_taken_from_what_the_user_namespace_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: str, expected: range | None
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "map").write_text(users + "\n")
    assert identity_range((tmp_path / "map", tmp_path / "map")) == expected


def test_a_server_that_is_not_root_gives_no_uids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert identity_range() is None


def test_no_two_sandboxes_get_the_same_uid() -> None:
    allowed = range(100, 110)
    assert choose_identity(allowed, set(range(100, 109))) == 109


def test_the_etc_of_sandboxes_is_made_once_and_readable_for_all(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    (machine / "alternatives").mkdir(parents=True)
    (machine / "services").touch()
    previous = os.umask(0o077)
    try:
        first = prepare_etc(tmp_path / "system", ["alternatives", "services"], machine)
    finally:
        os.umask(previous)
    assert prepare_etc(tmp_path / "system", ["alternatives", "services"], machine) == first
    assert prepare_etc(tmp_path / "system", [], machine) != first
    assert (first / "alternatives").is_dir()
    assert (first / "services").is_file()
    assert stat.S_IMODE(first.stat().st_mode) == 0o755
    assert stat.S_IMODE((first / "passwd").stat().st_mode) == 0o644
    assert len(list((tmp_path / "system").iterdir())) == 2


def test_a_sealed_copy_can_be_executed_but_not_read_and_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    program = tmp_path / "program"
    for version in range(5):
        program.write_text(f"version {version}")
        copy = sealed.sealed_copy(program, tmp_path / "home")
        assert stat.S_IMODE(copy.stat().st_mode) == 0o111
        assert copy.read_text() == f"version {version}" if os.geteuid() == 0 else True
        made = copy.stat().st_ctime_ns
        assert sealed.sealed_copy(program, tmp_path / "home").stat().st_ctime_ns == made
        os.utime(program, ns=(version, version))
    assert 1 <= len(list((tmp_path / "cache" / "cli").iterdir())) <= 3


def test_f13_a_cache_that_others_can_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F13: a planted directory in a predictable place."""
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    (tmp_path / "program").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cli").symlink_to(tmp_path / "elsewhere")
    assert sealed.sealed_copy(tmp_path / "program", tmp_path / "home").is_relative_to(tmp_path / "home")
    (tmp_path / "cache" / "cli").unlink()
    (tmp_path / "cache" / "cli").mkdir()
    (tmp_path / "cache" / "cli").chmod(0o777)
    assert sealed.sealed_copy(tmp_path / "program", tmp_path / "home").is_relative_to(tmp_path / "home")


def run_launcher(*words: str) -> subprocess.CompletedProcess[bytes]:
    """The launcher with a plan."""
    plan = os.memfd_create("plan")
    os.write(plan, "\0".join(words).encode())
    os.lseek(plan, 0, os.SEEK_SET)
    command = [sys.executable, "-I", "-S", launcher.__file__, str(plan)]
    return subprocess.run(command, pass_fds=[plan], capture_output=True, timeout=20, check=False)


def test_the_launcher_becomes_the_command_without_an_environment_or_foreign_descriptors() -> None:
    result = run_launcher("parent", str(os.getpid()), "oom", "800", "run", "/bin/sh", "-c", "ls /proc/self/fd; env")
    assert result.returncode == 0
    assert b"HOME" not in result.stdout
    assert result.stdout.split()[:4] == [b"0", b"1", b"2", b"3"]
    assert result.stdout.split()[4].startswith(b"PWD")


@pytest.mark.parametrize(
    "words",
    [
        ("parent", "1", "run", "/bin/echo", "ran"),
        ("parent", str(os.getpid()), "group", "/nonexistent/cgroup.procs", "run", "/bin/echo", "ran"),
        ("parent", str(os.getpid()), "mystery", "run", "/bin/echo", "ran"),
        ("parent", str(os.getpid()), "run", "/nonexistent"),
        ("parent", str(os.getpid())),
    ],
)
def test_s07_a_launcher_whose_plan_fails_runs_nothing(words: tuple[str, ...]) -> None:
    """S07: a missing limit, a dead server or an unknown step is no reason to go on without."""
    result = run_launcher(*words)
    assert result.returncode == launcher.FAILED
    assert result.stdout == b""
    assert result.stderr.startswith(b"launcher: ")


async def test_a_probe_of_another_system_names_it_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    (check,) = await BubblewrapProvider(tmp_path, tmp_path / "cli").probe()
    assert not check.ok
    assert "Darwin" in check.found
    assert "\n" not in check.remedy


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("user/max_user_namespaces", 0, "sysctl"),
        ("kernel/unprivileged_userns_clone", 0, "sysctl"),
        ("kernel/apparmor_restrict_unprivileged_userns", 1, "apparmor"),
    ],
)
async def test_a_probe_knows_what_forbids_user_namespaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: int, word: str
) -> None:
    monkeypatch.setattr(probe, "_setting", lambda name: value if name == setting else None)
    checks = await BubblewrapProvider(tmp_path, Path(sys.executable)).probe()
    (failed,) = [check for check in checks if not check.ok]
    assert failed.name == "user namespaces"
    assert word in failed.remedy
    assert "\n" not in failed.remedy
    assert checks[-1].name != "trial"
