"""What is known about programs: wrappers, runners, flags that turn a harmless program into another, files it writes.

Tables, no logic. They make denials find what is meant and keep allows narrow; they are not the boundary. Sources:
rows R07, R08, R12, R13, R14 and R16 of the security catalogue, and the manuals of the programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True)
class Wrapper:
    """A program whose arguments are another command.

    Args:
        valued: its options that take the next word as their value.
        operands: words of its own before the command.
        assignments: ``NAME=value`` words may stand before the command.
        joined: it joins its arguments to one line for a shell, so the inner words are parsed again.
        appends: it adds words that the script does not show.
    """

    valued: frozenset[str] = frozenset()
    operands: int = 0
    assignments: bool = False
    joined: bool = False
    appends: bool = False


def _wrapper(
    valued: str = "", operands: int = 0, *, assignments: bool = False, joined: bool = False, appends: bool = False
) -> Wrapper:
    return Wrapper(frozenset(valued.split()), operands, assignments, joined, appends)


WRAPPERS: Final[Mapping[str, Wrapper]] = MappingProxyType(
    {
        "env": _wrapper("-u --unset -C --chdir -S --split-string --argv0 -a", assignments=True),
        "sudo": _wrapper("-u -g -h -p -C -D -R -r -t -T -U --user --group --host --prompt --chdir", assignments=True),
        "doas": _wrapper("-u -C"),
        "timeout": _wrapper("-k --kill-after -s --signal", 1),
        "gtimeout": _wrapper("-k --kill-after -s --signal", 1),
        "time": _wrapper("-f --format -o --output"),
        "nice": _wrapper("-n --adjustment"),
        "nohup": _wrapper(),
        "stdbuf": _wrapper("-i -o -e --input --output --error"),
        "setsid": _wrapper(),
        "ionice": _wrapper("-c -n -p --class --classdata"),
        "chrt": _wrapper("-p", 1),
        "taskset": _wrapper("-p", 1),
        "watch": _wrapper("-n --interval -d", joined=True),
        "xargs": _wrapper(
            "-I -i -n -P -L -l -d -a -E -e -s --max-args --max-procs --max-lines --delimiter --arg-file --replace "
            "--max-chars",
            appends=True,
        ),
        "parallel": _wrapper("-j --jobs -I -a --arg-file -d --delimiter -n", appends=True),
        "flock": _wrapper("-w --timeout -E --conflict-exit-code", 1),
        "busybox": _wrapper(),
        "toybox": _wrapper(),
        "command": _wrapper(),
        "builtin": _wrapper(),
        "exec": _wrapper("-a"),
        "strace": _wrapper("-o -e -p -s -u -E"),
        "ltrace": _wrapper("-o -e -p -s -u"),
        "eval": _wrapper(joined=True),
    }
)

SHELLS: Final = frozenset({"bash", "sh", "dash", "zsh", "ksh", "mksh", "ash", "fish", "csh", "tcsh", "rbash"})

INTERPRETERS: Final = SHELLS | frozenset(
    {
        "python", "python2", "python3", "pypy", "pypy3", "node", "nodejs", "deno", "bun", "perl", "ruby", "php", "lua",
        "luajit", "tclsh", "wish", "expect", "rscript", "julia", "osascript", "pwsh", "powershell", "groovy", "guile",
        "elixir", "erl", "ghci", "scala", "jshell", "tsx", "ts-node", "ipython", "java", "swift",
    }
)  # fmt: skip
"""Programs that run what they are given: as a file, an option, or on standard input."""

RUNNERS: Final = frozenset(
    {
        ("npx",), ("bunx",), ("uvx",), ("pipx",), ("corepack",), ("npm", "exec"), ("npm", "x"), ("npm", "init"),
        ("npm", "create"), ("pnpm", "dlx"), ("pnpm", "exec"), ("yarn", "dlx"), ("yarn", "exec"), ("bun", "x"),
        ("uv", "run"), ("uv", "tool"), ("poetry", "run"), ("pipenv", "run"), ("hatch", "run"), ("conda", "run"),
        ("bundle", "exec"), ("rbenv", "exec"), ("pyenv", "exec"), ("asdf", "exec"), ("mise", "exec"), ("rustup", "run"),
        ("docker",), ("podman",), ("nerdctl",), ("kubectl", "exec"), ("kubectl", "run"), ("direnv",),
        ("devbox",), ("nix",), ("nix-shell",), ("nix-build",), ("ssh",), ("scp",), ("sftp",), ("rsh",), ("su",),
        ("runuser",), ("gdb",), ("lldb",), ("vi",), ("vim",), ("nvim",), ("ex",), ("ed",), ("emacs",), ("nano",),
        ("less",), ("more",), ("man",), ("m4",), ("script",), ("at",), ("batch",), ("crontab",), ("systemd-run",),
        ("systemctl",), ("screen",), ("tmux",), ("sqlite3",), ("psql",), ("mysql",), ("go", "run"), ("go", "generate"),
        ("git", "bisect"), ("git", "filter-branch"), ("git", "submodule"), ("git", "difftool"), ("git", "mergetool"),
        ("git", "config"), ("git", "daemon"), ("git", "instaweb"), ("unshare",), ("nsenter",), ("chroot",),
        ("proot",), ("fakeroot",), ("bwrap",), ("firejail",), ("socat",), ("nc",), ("ncat",), ("openssl",),
        ("capsh",), ("setpriv",), ("start-stop-daemon",), ("run-parts",), ("dbus-run-session",), ("xdg-open",),
        ("pexec",), ("entr",), ("prlimit",), ("setarch",),
        ("linux32",), ("linux64",), ("unbuffer",), ("catchsegv",), ("caffeinate",), ("numactl",), ("torsocks",),
        ("proxychains",), ("sshpass",), ("xvfb-run",), ("faketime",), ("chpst",), ("daemonize",), ("cpulimit",),
        ("valgrind",), ("perf",), ("choom",), ("i386",), ("x86_64",), ("uname26",), ("rlwrap",), ("hyperfine",),
        ("dotenv",), ("op", "run"), ("foreman",), ("rtx",), ("mise", "x"), ("doppler", "run"), ("chamber", "exec"),
        ("aws-vault", "exec"), ("envdir",), ("softlimit",), ("setuidgid",), ("dumb-init",), ("tini",), ("gosu",),
        ("su-exec",), ("pkexec",), ("runcon",), ("chronic",), ("ip", "netns"), ("cgexec",), ("systemd-inhibit",),
        ("eatmydata",), ("sem",), ("sg",), ("dtach",), ("abduco",), ("tsocks",), ("proxychains4",), ("apptainer",),
        ("singularity",), ("lxc-attach",), ("machinectl",), ("wine",), ("box64",), ("watchexec",), ("nodemon",),
    }
)  # fmt: skip
"""Commands that run another command, a script or a package: allowed only word for word (row R08)."""

STATEFUL: Final = frozenset(
    {
        ".", "source", "eval", "alias", "unalias", "hash", "enable", "shopt", "trap", "bind", "complete", "compgen",
        "fc", "history", "mapfile", "readarray", "let", "read", "getopts", "caller", "coproc", "emulate", "setopt",
        "unsetopt", "autoload", "zmodload", "noglob", "nocorrect", "suspend", "dirs", "pushd", "popd", "unset",
        "declare", "typeset", "local", "readonly", "nameref", "ulimit", "umask", "logout", "disown",
    }
)  # fmt: skip
"""Shell builtins after which later words may mean something else, or that run text: never proved."""

HARMLESS: Final = frozenset({":", "true", "false", "exit", "wait", "pwd", "set", "export"})
"""Shell builtins that by themselves do nothing that needs a rule, if their words are plain (``export`` and ``set``:
their assignments and options are judged)."""

EVALUATES_SUBSCRIPTS: Final = frozenset({"test", "[", "wait", "printf", "export"})
"""Shell builtins that take names of variables, and run what stands in the subscript of one: ``test -v 'a[$(id)]'``."""

SAFE_OPTIONS: Final = frozenset("euxovf") | frozenset({"pipefail", "errexit", "nounset", "xtrace"})
"""What ``set`` may switch without changing what later words mean."""

SAFE_VARIABLES: Final = frozenset(
    {
        "CI", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_COLLATE", "LC_MESSAGES", "TZ", "TERM", "NO_COLOR",
        "FORCE_COLOR", "CLICOLOR", "COLUMNS", "LINES", "DEBUG", "VERBOSE", "LOG_LEVEL", "RUST_LOG", "RUST_BACKTRACE",
        "NODE_ENV", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED", "PYTHONIOENCODING", "PYTHONUTF8",
        "DEBIAN_FRONTEND", "SOURCE_DATE_EPOCH", "GIT_TERMINAL_PROMPT",
    }
)  # fmt: skip
"""Variables that change how a program speaks, not what it does or which program it is (row R06)."""

DANGEROUS_FLAGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "find": ("-exec", "-execdir", "-ok", "-okdir", "-delete", "-fprint", "-fprint0", "-fprintf", "-fls",
                 "-files0-from"),
        "fd": ("-x", "--exec", "-X", "--exec-batch"),
        "fdfind": ("-x", "--exec", "-X", "--exec-batch"),
        "rg": ("--pre", "--pre-glob", "--hostname-bin", "-z", "--search-zip"),
        "sed": ("-f", "--file", "-i", "--in-place"),
        "sort": ("-o", "--output", "--compress-program", "-T", "--temporary-directory", "--files0-from"),
        "git": ("-c", "-C", "--config-env", "--exec-path", "--git-dir", "--work-tree", "--namespace",
                "-p", "--paginate", "--ext-diff", "--textconv", "-O", "--open-files-in-pager", "--output", "-o",
                "--upload-pack", "--receive-pack", "--exec", "-x", "--config", "--template", "--separate-git-dir",
                "--no-index"),
        "printf": ("-v",),
        "tar": ("--checkpoint-action", "--to-command", "-I", "--use-compress-program", "--rsh-command", "-F",
                "--info-script", "--new-volume-script", "--rmt-command", "-P", "--absolute-names"),
        "zip": ("-T", "-TT", "--unzip-command"),
        "rsync": ("-e", "--rsh", "--rsync-path", "--remote-option", "-M"),
        "curl": ("-K", "--config", "-o", "--output", "-O", "--remote-name", "--output-dir", "-D", "--dump-header",
                 "-c", "--cookie-jar", "--trace", "--trace-ascii", "--unix-socket", "-T", "--upload-file"),
        "wget": ("-O", "--output-document", "-P", "--directory-prefix", "-e", "--execute", "--config", "-o", "-a",
                 "--use-askpass", "--post-file", "--body-file"),
        "base64": ("-o", "--output"),
        "awk": ("-f", "--file", "-i", "--include", "-l", "--load", "-E", "--exec", "-e", "--source"),
        "make": ("-f", "--file", "--makefile", "-C", "--directory", "--eval", "-I", "--include-dir", "SHELL=",
                 ".SHELLFLAGS=", "MAKEFLAGS="),
        "npm": ("--script-shell", "--node-options", "--prefix", "-C", "--userconfig", "--globalconfig"),
        "pnpm": ("--script-shell", "-C", "--dir", "--shell-mode"),
        "yarn": ("--cwd", "--use-yarnrc"),
        "go": ("-exec", "-toolexec", "-vettool", "-C", "-overlay", "-modfile"),
        "cargo": ("--config", "-C", "-Z", "--manifest-path"),
        "pytest": ("-p", "-c", "--config-file", "--rootdir", "--confcutdir", "-o", "--override-ini"),
        "pip": ("--index-url", "-i", "--extra-index-url", "--trusted-host", "--config-settings", "--python",
                "--global-option", "--build-option"),
        "gcc": ("-wrapper", "-B", "-specs", "-fplugin"),
        "clang": ("-fplugin", "-Xclang", "-B"),
        "ld": ("--plugin", "-plugin"),
        "xxd": ("-r",),
        "diff": ("--to-file", "-l", "--paginate"),
        "env": ("-S", "--split-string"),
        "flock": ("-c", "--command"),
        "date": ("-s", "--set", "-f", "--file"),
        "hostname": ("-F", "--file"),
        "jq": ("-f", "--from-file", "-L"),
        "yq": ("-i", "--inplace", "--from-file"),
    }
)  # fmt: skip
"""Flags that make a program run, load or write something else than its name says (rows R12, R13). Such a call is
allowed only by a rule with exactly these words."""

CODE_FLAGS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "rg": frozenset({"--pre", "--hostname-bin"}),
        "sed": frozenset({"-f", "--file"}),
        "sort": frozenset({"--compress-program"}),
        "git": frozenset({"-c", "--config-env", "--exec-path", "-x", "--exec", "--upload-pack", "--receive-pack",
                          "--config", "--template", "--open-files-in-pager"}),
        "tar": frozenset({"--checkpoint-action", "--to-command", "-I", "--use-compress-program", "--rsh-command", "-F",
                          "--info-script", "--new-volume-script", "--rmt-command"}),
        "zip": frozenset({"-TT", "--unzip-command"}),
        "rsync": frozenset({"-e", "--rsh", "--rsync-path"}),
        "curl": frozenset({"-K", "--config"}),
        "wget": frozenset({"-e", "--execute", "--config", "--use-askpass"}),
        "awk": frozenset({"-f", "--file", "-E", "--exec", "-l", "--load", "-i", "--include"}),
        "make": frozenset({"-f", "--file", "--makefile", "--eval", "SHELL=", ".SHELLFLAGS=", "MAKEFLAGS="}),
        "npm": frozenset({"--script-shell", "--node-options", "--userconfig"}),
        "go": frozenset({"-exec", "-toolexec", "-vettool"}),
        "cargo": frozenset({"--config"}),
        "pytest": frozenset({"-p"}),
        "pip": frozenset({"--python", "--config-settings"}),
        "gcc": frozenset({"-wrapper", "-specs", "-fplugin"}),
        "env": frozenset({"-S", "--split-string"}),
        "flock": frozenset({"-c", "--command"}),
    }
)  # fmt: skip
"""Those of the dangerous flags that make a program run another one, which its words do not show plainly."""

STEERING_VARIABLES: Final = (
    "PATH", "LD_*", "DYLD_*", "BASH_*", "ENV", "PROMPT_COMMAND", "PS[0-4]", "IFS", "SHELLOPTS", "BASHOPTS", "CDPATH",
    "GIT_*", "PAGER", "*_PAGER", "MANPAGER", "LESS*", "EDITOR", "VISUAL", "BROWSER", "PYTHON*", "PERL5*", "RUBY*",
    "NODE_*", "JAVA_*", "_JAVA_*", "MAKE*", "SHELL", "TAR_OPTIONS", "RSYNC_*", "npm_config_*", "NPM_CONFIG_*", "HOME",
    "XDG_*", "CARGO_*", "RUSTC*", "GO*", "CC", "CXX", "SUDO_*", "SSH_*", "PIP_*", "UV_*", "DOCKER_*",
)  # fmt: skip
"""Variables that choose which programs run, or with which code; all but those known to be harmless."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gawk": "awk", "mawk": "awk", "nawk": "awk", "gsed": "sed", "gmake": "make", "g++": "gcc", "cc": "gcc",
        "c++": "gcc", "clang++": "clang", "pip3": "pip", "gfind": "find", "bsdtar": "tar", "gtar": "tar",
        "ripgrep": "rg", "batcat": "bat",
    }
)  # fmt: skip

VALUED_GLOBALS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "git": frozenset({"-C", "-c", "--git-dir", "--work-tree", "--namespace", "--exec-path", "--config-env"}),
        "npm": frozenset({"--prefix", "-C", "--script-shell", "--loglevel", "-w", "--workspace"}),
        "docker": frozenset({"-H", "--host", "-l", "--log-level", "-c", "--context", "--config"}),
        "kubectl": frozenset({"-n", "--namespace", "--context", "--kubeconfig", "-s", "--server"}),
    }
)

READERS: Final = frozenset(
    {
        "cat", "tac", "head", "tail", "less", "more", "nl", "wc", "grep", "egrep", "fgrep", "rg", "ls", "stat", "file",
        "diff", "cmp", "comm", "cut", "uniq", "od", "hexdump", "strings", "md5sum", "sha1sum", "sha256sum", "du", "df",
        "tree", "find", "fd", "readlink", "realpath", "basename", "dirname", "jq", "bat", "test", "[", "cksum", "fold",
        "column", "paste", "join", "look", "zcat", "which", "type", "cd", "awk", "sort", "sed", "base64", "echo",
        "printf", "tr", "source", ".", "git",
    }
)  # fmt: skip
"""Programs that read the files they are given (unless a flag above says otherwise)."""

RECURSIVE: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "grep": ("-r", "-R", "--recursive", "--dereference-recursive", "-d", "--directories"),
        "egrep": ("-r", "-R", "--recursive"), "fgrep": ("-r", "-R", "--recursive"),
        "rg": (), "ag": (), "ack": (), "tar": (), "zip": ("-r", "--recurse-paths"), "rsync": (), "7z": (), "pax": (),
        "git": ("--no-index", "--untracked"),
        "cp": ("-r", "-R", "-a", "--recursive", "--archive"), "scp": ("-r",), "diff": ("-r", "--recursive"),
    }
)  # fmt: skip
"""Programs that read everything below a directory: always (no flags listed) or with one of the flags."""

SEARCHES: Final = frozenset({"grep", "egrep", "fgrep", "rg", "ag", "ack"})
"""Programs that search the working directory when they are given a pattern and no place."""

MOVES: Final = frozenset({"mv", "rm", "rmdir", "ln", "chmod", "chown", "chgrp", "cp", "rsync", "install", "unlink"})
"""Programs that move, remove or replace a directory with all that is in it."""

WRITES_ALL: Final = frozenset(
    {"touch", "mkdir", "rmdir", "rm", "unlink", "truncate", "shred", "tee", "sponge", "mkfifo", "mktemp", "mv"}
)
"""Programs that write (make, change, remove) every file they are given."""

WRITES_BUT_FIRST: Final = frozenset({"chmod", "chown", "chgrp", "mknod", "setfacl", "chattr"})

WRITES_LAST: Final = frozenset({"cp", "install", "ln", "rsync", "scp"})
"""Programs whose last operand, or ``-t``, is written."""

OUTPUT_FLAGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "sort": ("-o", "--output"), "curl": ("-o", "--output", "-D", "--dump-header", "-c", "--cookie-jar", "--trace",
                                             "--trace-ascii", "--output-dir"),
        "wget": ("-O", "--output-document", "-P", "--directory-prefix", "-o", "-a"), "base64": ("-o", "--output"),
        "gcc": ("-o",), "clang": ("-o",), "tar": ("-f", "--file", "-C", "--directory"), "unzip": ("-d",),
        "git": ("--output", "-o"), "patch": ("-o", "--output", "-r"), "openssl": ("-out",),
        "cp": ("-t", "--target-directory"), "mv": ("-t", "--target-directory"), "ln": ("-t", "--target-directory"),
        "install": ("-t", "--target-directory"), "strace": ("-o",), "time": ("-o", "--output"),
        "find": ("-fprint", "-fprint0", "-fprintf", "-fls"),
    }
)  # fmt: skip
"""Flags whose value is a file that the program writes."""
