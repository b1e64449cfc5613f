"""bubblewrap's argument list, held still by a snapshot: every change of it is a change of a file under review."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.sandboxes.base import CLI, CONFIG_DIR, GATEWAY_SOCKET, Limits
from server.sandboxes.bubblewrap.arguments import Sources, bubblewrap_options, inner_command
from server.sandboxes.bubblewrap.layout import SystemLayout

SNAPSHOT = Path(__file__).with_name("bubblewrap_arguments.txt")

DEBIAN = SystemLayout(
    links=(("usr/bin", "/bin"), ("usr/lib", "/lib"), ("usr/lib64", "/lib64"), ("usr/sbin", "/sbin")),
    directories=("/usr",),
    covered=("/usr/local/etc",),
    etc=("alternatives", "ld.so.cache"),
)
SOURCES = Sources(
    etc="/stage/etc",
    cli="/stage/cli",
    gateway_socket="/stage/gateway",
    workspace="/stage/workspace",
    config="/stage/config",
)


def as_lines(words: list[str]) -> str:
    """One option a line, with its values."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines) + "\n"


def test_the_argument_list_is_as_reviewed() -> None:
    words = bubblewrap_options(SOURCES, DEBIAN, Limits(), {"CLAUDE_CONFIG_DIR": CONFIG_DIR, "LANG": "de"})
    assert as_lines(words) == SNAPSHOT.read_text()


def test_a_sandbox_with_an_outlet_differs_only_in_that_it_waits_for_it() -> None:
    plain = bubblewrap_options(SOURCES, DEBIAN, Limits(), {})
    waiting = bubblewrap_options(SOURCES, DEBIAN, Limits(), {}, waits=True)
    at = waiting.index("--block-fd")
    assert waiting[at : at + 2] == ["--block-fd", "9"]
    assert waiting[:at] + waiting[at + 2 :] == plain


def test_the_command_is_as_reviewed() -> None:
    command = inner_command([CLI, "--version"], processes=64)
    assert command == [
        "/bin/sh",
        "-c",
        "exec <&7 >&8 7<&- 8>&-; "
        'ulimit -u "$1" 2>/dev/null || ulimit -p "$1" || exit 125; shift; '
        'printf . >&6; exec 6>&-; exec "$@"',
        "starter",
        "64",
        CLI,
        "--version",
    ]


def test_a_command_of_the_house_sees_no_configuration() -> None:
    plain = Sources(etc="/e", cli="/c", gateway_socket="/g", workspace="/w", config=None)
    words = bubblewrap_options(plain, DEBIAN, Limits(), {})
    assert CONFIG_DIR not in words
    assert GATEWAY_SOCKET in words


@pytest.mark.parametrize(
    "name", ["LD_PRELOAD", "LD_AUDIT", "BASH_FUNC_ls%%", "BASH_ENV", "ENV", "NODE_OPTIONS", "a b", "", "é"]
)
def test_s10_variables_that_load_code_are_refused(name: str) -> None:
    """S10: also those that no test can try for real."""
    with pytest.raises(ValueError, match="environment variable"):
        bubblewrap_options(SOURCES, DEBIAN, Limits(), {name: "x"})


def test_a_value_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        bubblewrap_options(SOURCES, DEBIAN, Limits(), {"NAME": "a\0--bind\0/\0/"})


def test_the_layout_of_a_machine_without_merged_directories_is_seen(tmp_path: Path) -> None:
    for name in ("usr/local/etc", "bin", "lib", "etc/alternatives"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lib64").symlink_to("usr/lib64")
    layout = SystemLayout.of_this_machine(tmp_path)
    assert layout.directories == ("/usr", "/bin", "/lib")
    assert layout.links == (("usr/lib64", "/lib64"),)
    assert layout.covered == ("/usr/local/etc",)
    assert layout.etc == ("alternatives",)
