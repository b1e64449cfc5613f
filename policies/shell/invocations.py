"""From a script to every program it may start: wrappers taken off, inner scripts read, each judged by itself.

A wrapper and what it wraps are two invocations, and both need an allow: taking a wrapper off finds more for denials
and never widens an allow (row R07). Inner scripts (``bash -c``, ``eval``, a here-document for a shell) are read like
the outer one, to a bounded depth.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from policies.shell import programs
from policies.shell.script import Assignment, BrokenScriptError, Redirect, Script, SimpleCommand
from policies.shell.syntax import read_script
from policies.shell.words import Word, WordKind

MAX_SCRIPTS: Final = 8
"""Inner scripts read of one command; more are not provable."""

MAX_INVOCATIONS: Final = 1000
MAX_WORDS: Final = 60_000
"""Words of all invocations together: a wrapper's words count again for what it wraps."""

_SUFFIX_WORDS: Final = 50
_SUFFIXES: Final = 6
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSIONED: Final = re.compile(r"(python|pypy|perl|ruby|php|lua|node|gcc|g\+\+|clang|clang\+\+|pip)-?\d[\d.]*")
_SUBSCRIPT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\[")
_LOADERS: Final = ("ld-linux", "ld.so", "ld-musl", "ld-2", "ld64")
_SED_STEP: Final = re.compile(
    r"(?:(?:\d+|\$|/[^/\n;{}\\]*/)(?:,(?:\d+|\$|/[^/\n;{}\\]*/))?)?!?"
    r"(?:[pdqnN=]|s([/|,#@:])(?:(?!\1)[^\\\n]|\\.)*\1(?:(?!\1)[^\\\n]|\\.)*\1[gpiIM0-9]*)?"
)
_AWK_EFFECT: Final = re.compile(r"system|getline|[|>@]|\binclude\b")


@dataclass(frozen=True)
class Invocation:
    """One program with its arguments.

    Args:
        words: as far as they are known.
        command: the simple command it comes from, for its redirections and its place.
        open_ended: further arguments follow that the script does not show.
        certain: False if this is only one reading of the words; then it counts for denials alone.
        danger: why only a rule with exactly these words may allow it.
        runner: it runs what its second word names, so a rule that allows it must name that word.
        opaque: it runs code or a program that its words do not show plainly.
    """

    words: tuple[Word, ...]
    command: SimpleCommand
    open_ended: bool = False
    certain: bool = True
    danger: str | None = None
    runner: bool = False
    opaque: bool = False

    @cached_property
    def name(self) -> str:
        """The program's plain name, or an empty text."""
        return program_name(self.words[0].text) if self.words else ""


@dataclass(frozen=True)
class Surroundings:
    """What stands around a program: the assignments and redirections of one command."""

    assignments: tuple[Assignment, ...]
    redirects: tuple[Redirect, ...]
    certain: bool = True


@dataclass
class Unwrapped:
    """What a script runs, in its order. ``doubts`` as in :class:`policies.shell.syntax.Script`.

    ``steps`` holds invocations and, for commands without a word or for what stands around one, the simple command
    itself: its redirections and assignments come after its words.
    """

    steps: list[Invocation | Surroundings] = field(default_factory=list)
    doubts: dict[str, None] = field(default_factory=dict)
    scripts: int = 0


def program_name(text: str) -> str:
    """A program's name as the tables know it: without directory, version and case."""
    name = text.rsplit("/", 1)[-1].casefold()
    if (versioned := _VERSIONED.fullmatch(name)) is not None:
        name = versioned[1]
    return programs.ALIASES.get(name, name)


def unwrap(script: Script) -> Unwrapped:
    """Every invocation of a script, outer before inner, in the order of the text.

    Raises:
        BrokenScriptError: there are too many.
    """
    found = Unwrapped(doubts=dict.fromkeys(script.doubts))
    pending: list[tuple[Invocation, bool]] = []

    def add_script(inner: Script, certain: bool) -> None:
        pending.extend(
            (Invocation(command.words, command, certain=certain), True) for command in reversed(inner.commands)
        )

    add_script(script, True)
    count = 0
    while pending:
        invocation, outer = pending.pop()
        count += len(invocation.words)
        if len(found.steps) > MAX_INVOCATIONS or count > MAX_WORDS:
            raise BrokenScriptError("the command starts too many programs: put it into a script file")
        command = invocation.command
        if outer and (command.assignments or command.redirects):
            found.steps.append(Surroundings(command.assignments, command.redirects, invocation.certain))
        if not invocation.words:
            continue
        invocation = _classified(invocation)
        found.steps.append(invocation)
        _note_state(invocation, found)
        pending.extend((inner, False) for inner in reversed(_inner(invocation, found)))
        for text, certain in _scripts(invocation):
            found.scripts += 1
            if found.scripts > MAX_SCRIPTS:
                found.doubts["scripts within scripts"] = None
                break
            try:
                nested = read_script(text)
            except BrokenScriptError:
                if certain:
                    found.doubts["a script within the script that cannot be read"] = None
                continue
            if certain:
                found.doubts.update(dict.fromkeys(nested.doubts))
            add_script(nested, certain)
    return found


def _note_state(invocation: Invocation, found: Unwrapped) -> None:
    """Doubts from builtins after which later words may mean something else."""
    name = invocation.name
    options = [word.text for word in invocation.words[1:]]
    if not invocation.certain:
        return
    if name in programs.STATEFUL:
        found.doubts[f"the shell builtin {name}"] = None
    elif name == "set":
        if not options or not all(
            option in programs.SAFE_OPTIONS or re.fullmatch(r"[-+][euxovf]+", option) for option in options
        ):
            found.doubts["set with unusual options"] = None
    elif name == "export" and any(not _NAME.fullmatch(option) for option in options):
        found.doubts["export with options"] = None


def _classified(invocation: Invocation) -> Invocation:
    """The invocation with what is dangerous about it."""
    name = invocation.name
    runner = name in programs.INTERPRETERS
    texts = [word.text for word in invocation.words[1:]]
    code = _runs_code(name, invocation) or _dangerous_flag(name, texts, programs.CODE_FLAGS.get(name, ()))
    danger = code or _dangerous_flag(name, texts, programs.DANGEROUS_FLAGS.get(name, ()))
    if danger is None and not runner:
        return invocation
    return replace(invocation, danger=danger, runner=runner, opaque=code is not None)


def _runs_code(name: str, invocation: Invocation) -> str | None:
    """Why an invocation runs what its words do not show plainly, if it does."""
    texts = [word.text for word in invocation.words]
    if name in programs.INTERPRETERS:
        if len(texts) < 2 or texts[1].startswith("-"):
            return f"{name} runs code that a prefix rule does not see"
        return None
    named = name != "printf" or any(text.startswith("-v") for text in texts[1:])
    if named and name in programs.EVALUATES_SUBSCRIPTS and any(_SUBSCRIPT.match(text) for text in texts[1:]):
        return "a subscript that the shell evaluates"
    if name.startswith(_LOADERS):
        return "the dynamic loader runs any program"
    subcommand = _subcommand(name, texts)
    if (name,) in programs.RUNNERS or (name, subcommand) in programs.RUNNERS:
        return f"{name} {subcommand or ''}".strip() + " runs other programs"
    if name == "sed" and not _plain_sed(texts[1:]):
        return "a sed script that may write files or run programs"
    if name == "awk" and any(_AWK_EFFECT.search(text) for text in texts[1:]):
        return "an awk program that may write files or run programs"
    return None


def _dangerous_flag(name: str, texts: list[str], flags: Collection[str]) -> str | None:
    for text in texts if flags else ():
        if has_flag(flags, text):
            return f"{name} with {text.split('=')[0][:40]}"
        if name == "git" and text.startswith("ext::"):
            return "git with a transport that runs a program"
    if name == "tar" and texts and not texts[0].startswith("-") and set(texts[0]) & {"I", "F", "P"}:
        return "tar with an option that runs a program"
    return None


def _subcommand(name: str, texts: list[str]) -> str | None:
    """The first word that is not an option of the program itself."""
    valued = programs.VALUED_GLOBALS.get(name, frozenset())
    index = 1
    while index < len(texts) and texts[index].startswith("-"):
        index += 2 if texts[index] in valued else 1
    return texts[index] if index < len(texts) else None


def has_flag(flags: Collection[str], text: str) -> bool:
    """Whether a word is, abbreviates, or holds in a cluster one of some flags."""
    if not text.startswith("-"):
        return any(text.startswith(flag) for flag in flags if not flag.startswith("-"))
    for flag in flags:
        if not flag.startswith("-"):
            if text.startswith(flag):
                return True
        elif flag.startswith("--"):
            given = text.split("=", 1)[0]
            if len(given) > 3 and flag.startswith(given):
                return True
        elif len(flag) == 2:
            if text.startswith("-") and not text.startswith("--") and flag[1] in text[1:]:
                return True
        elif text.split("=", 1)[0].lstrip("-") == flag[1:] and text.startswith("-"):
            return True
    return False


def _plain_sed(arguments: list[str]) -> bool:
    """Whether every script of a sed call only prints, deletes and substitutes."""
    scripts: list[str] = []
    operands: list[str] = []
    index = 0
    while index < len(arguments):
        text = arguments[index]
        if text.startswith("--expression="):
            scripts.append(text.partition("=")[2])
        elif text == "--expression" or (re.fullmatch(r"-[nErz]*e", text) and index + 1 < len(arguments)):
            index += 1
            scripts.append(arguments[index] if index < len(arguments) else "")
        elif text.startswith("-e"):
            scripts.append(text[2:])
        elif not text.startswith("-"):
            operands.append(text)
        index += 1
    if not scripts:
        scripts = operands[:1]
    return all(_SED_STEP.fullmatch(step.strip()) for script in scripts for step in re.split(r"[;\n]", script))


def _inner(invocation: Invocation, found: Unwrapped) -> list[Invocation]:
    """What a wrapper, ``find -exec`` or a runner starts."""
    name, words = invocation.name, invocation.words
    if (wrapper := programs.WRAPPERS.get(name)) is not None and not wrapper.joined:
        return _wrapped(invocation, wrapper, found)
    if name in ("find", "fd", "fdfind"):
        return _executed_by_find(invocation)
    texts = [word.text for word in words]
    if name == "git" and _subcommand(name, texts) == "grep":
        # It searches everything below, like the program of that name.
        rest = words[texts.index("grep") + 1 :]
        return [replace(invocation, words=(Word("grep"), Word("-r"), *rest), certain=False)]
    if name.startswith("git-") and len(name) > 4:
        # Where git keeps its programs each has a name of its own.
        plain = (Word("git"), Word(name[4:]), *words[1:])
        return [replace(invocation, words=plain, certain=False)]
    is_runner = (name,) in programs.RUNNERS or (name, _subcommand(name, texts)) in programs.RUNNERS
    if is_runner or name in programs.INTERPRETERS or name.startswith(_LOADERS):
        # Which word begins the inner command is the program's own affair: for denials, each of the first may.
        starts = [index for index in range(1, len(words)) if not texts[index].startswith("-")][:_SUFFIXES]
        if name in programs.INTERPRETERS and name not in programs.SHELLS:
            starts = [index + 1 for index, text in enumerate(texts[:-1]) if text == "-m"][:1]
        return [replace(invocation, words=words[start : start + _SUFFIX_WORDS], certain=False) for start in starts]
    return []


def _after_options(words: tuple[Word, ...], wrapper: programs.Wrapper) -> tuple[int, bool]:
    """Where a wrapper's options end, and whether one of them may take a word that the tables do not know of."""
    index, guessed = 1, False
    while index < len(words) and words[index].text.startswith("-") and len(words[index].text) > 1:
        text = words[index].text
        index += 1
        if text == "--":
            break
        if text in wrapper.valued:
            index += 1
        elif "=" not in text:
            guessed = True
    return index, guessed


def _wrapped(invocation: Invocation, wrapper: programs.Wrapper, found: Unwrapped) -> list[Invocation]:
    words = invocation.words
    index, guessed = _after_options(words, wrapper)
    if wrapper.assignments:
        while index < len(words) and words[index].text == "-":
            # To env a lone dash is an option.
            index += 1
        while index < len(words) and "=" in words[index].text.lstrip("="):
            name, _, value = words[index].text.partition("=")
            assignment = Assignment(name, Word(value, words[index].kind))
            found.steps.append(Surroundings((assignment,), (), invocation.certain))
            index += 1
    index += wrapper.operands
    inner = words[index:]
    open_ended = invocation.open_ended or wrapper.appends
    results = []
    if any(word.text in ("-C", "--chdir", "-D") for word in words[1:index]) and wrapper.assignments:
        found.doubts["a wrapper that changes the directory"] = None
    if inner:
        if not inner[0].known:
            found.doubts["a program whose name is not plain"] = None
        results.append(replace(invocation, words=inner, open_ended=open_ended))
        if guessed and len(inner) > 1:
            results.append(replace(invocation, words=inner[1:], open_ended=open_ended, certain=False))
    elif wrapper.appends:
        found.doubts["a command read from standard input"] = None
    return results


def _executed_by_find(invocation: Invocation) -> list[Invocation]:
    results = []
    words = invocation.words
    for index, word in enumerate(words):
        if word.text in ("-exec", "-execdir", "-ok", "-okdir", "-x", "--exec", "-X", "--exec-batch"):
            rest = words[index + 1 :]
            end = next((place for place, other in enumerate(rest) if other.text in (";", "+")), len(rest))
            if rest[:end]:
                results.append(replace(invocation, words=rest[:end], open_ended=True))
    return results


def _scripts(invocation: Invocation) -> list[tuple[str, bool]]:
    """Scripts inside an invocation's words or input, and whether they certainly run as such."""
    name, words = invocation.name, invocation.words
    texts = [word.text for word in words]
    wrapper = programs.WRAPPERS.get(name)
    if wrapper is not None and wrapper.joined:
        return [(" ".join(texts[_after_options(words, wrapper)[0] :]), invocation.certain)]
    found: list[tuple[str, bool]] = []
    if name in programs.SHELLS:
        option = next(
            (index for index, text in enumerate(texts) if index and re.fullmatch(r"[-+][A-Za-z]*c[A-Za-z]*", text)),
            None,
        )
        if option is not None:
            operand = next((word for word in words[option + 1 :] if not word.text.startswith(("-", "+"))), None)
            if operand is not None:
                found.append((operand.text, invocation.certain and operand.kind is WordKind.LITERAL))
        elif invocation.command.stdin is not None and all(text.startswith("-") for text in texts[1:]):
            found.append((invocation.command.stdin, invocation.certain))
    elif invocation.danger is not None:
        # A word with blanks may be a command line for a shell.
        found.extend((text, False) for text in texts[1:] if re.search(r"\s", text.strip()) and len(text) < 4096)
    return found[:MAX_SCRIPTS]
