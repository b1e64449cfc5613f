"""A request taken apart into what is judged: the call itself, and of a shell command every program, redirection,
assignment and change of directory, each as a request of its own.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final

from policies.catalogue import MCP_TOOL, TOOLS, FieldKind, canonical_name, input_fault
from policies.globs import UNDOTTED
from policies.hosts import HostError, parse_host, url_host
from policies.paths import (
    ResolvedPath,
    UnresolvablePathError,
    denial_forms,
    folded,
    hidden_character,
    is_below,
    resolve,
)
from policies.shell import programs
from policies.shell.access import Operand, hosts, operands, written
from policies.shell.invocations import Invocation, Surroundings, Unwrapped, program_name, unwrap
from policies.shell.syntax import BrokenScriptError, Redirect, read_script
from policies.shell.words import Word, WordKind
from policies.types import Facts, ToolRequest

MAX_DIRECTORIES: Final = 16
MAX_CLAIMS: Final = 4000
MAX_TEXT_FIELD: Final = 4096
_GLOB: Final = frozenset("*?[")
_NO_FILES: Final = frozenset({"/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin", "/dev/tty", "/dev/zero"})


class PartKind(StrEnum):
    """What a part is. The values appear in decisions."""

    TOOL = "tool"
    COMMAND = "command"
    READ = "read"
    WRITE = "write"
    ASSIGNMENT = "assignment"
    DIRECTORY = "directory"
    SCRIPT = "script"


@dataclass(frozen=True)
class PathClaim:
    """A path that a part names.

    Args:
        candidates: where it may lead, for allows: each must be covered.
        forms: the same folded, for denials: any may be hit.
        glob: folded components of a pattern, if it is one; its candidates are then the directory it starts in.
        reads: the part may read there.
        writes: the part may write there.
        deep: the part reads everything below.
        whole: the part moves, removes or replaces a directory with all that is in it.
        filtered: the glob is a filter of a search below a directory.
        plain: an allow with paths must cover it; False for mere readings of a word that only denials look at.
    """

    candidates: tuple[str, ...]
    forms: tuple[str, ...]
    glob: tuple[str, ...] | None = None
    reads: bool = True
    writes: bool = False
    deep: bool = False
    plain: bool = True
    whole: bool = False
    filtered: bool = False


@dataclass(frozen=True)
class Part:
    """One part of a request.

    Args:
        kind: what it is.
        tool: in whose name an allow must stand: a redirection's target is a Write.
        called: the tool that was called.
        text: what it is, for people.
        needs_allow: False if it is harmless by itself; denials reach it all the same.
        words: program and arguments of a command.
        names: folded names of the program, its links' ends included.
        exact_only: why only a rule with exactly these words may allow it.
        runner: a rule that allows it must name its second word too.
        open_ended: further arguments follow that are not known.
        opaque: what it will do is not plain from its words.
        certain: False if it is only one reading; then it counts for denials alone.
        claims: the paths that it names.
        directories: where it may run.
        hosts: hosts that it names.
        variables: variables that it sets.
        input: the call's input.
        doubts: of a script: why it is not provable.
        unproven: it belongs to a script that is not provable.
    """

    kind: PartKind
    tool: str
    called: str
    text: str
    needs_allow: bool = True
    words: tuple[Word, ...] = ()
    names: tuple[str, ...] = ()
    exact_only: str | None = None
    runner: bool = False
    open_ended: bool = False
    opaque: bool = False
    certain: bool = True
    claims: tuple[PathClaim, ...] = ()
    directories: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    input: Mapping[str, Any] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    unproven: bool = False


class RefusedError(ValueError):
    """A request that no policy can allow. ``rule`` is the built-in check, the text says what to do."""

    def __init__(self, rule: str, because: str) -> None:
        super().__init__(because)
        self.rule = rule
        self.because = because


def parts_of(request: ToolRequest, facts: Facts) -> tuple[Part, ...]:
    """The parts of a call of a known tool, the call itself first.

    Raises:
        RefusedError: the input is malformed, holds an unknown field, control characters or a path that cannot be
            judged, or the command cannot be read.
    """
    name = canonical_name(request.tool)
    tool = TOOLS.get(name)
    if tool is None:
        if MCP_TOOL.fullmatch(name) is None:
            raise RefusedError("rookery:unknown-tool", f"The tool {_clean(request.tool, 60)} is not known here.")
        return (Part(PartKind.TOOL, name, name, name, input=request.input),)
    if (fault := input_fault(tool, request.input)) is not None:
        raise RefusedError("rookery:input", f"{fault[:1].upper()}{fault[1:]}: correct the call.")
    _check_characters(tool.fields, request.input)
    if name == "Bash":
        return _bash_parts(request, facts)
    claims = _claims(request.input, tool.fields, facts, searches=tool.searches)
    found = _hosts(request.input, tool.fields)
    text = " ".join([name, *(claim.candidates[0] for claim in claims[:1]), *found[:1]])
    return (Part(PartKind.TOOL, name, name, _clean(text), claims=claims, hosts=found, input=request.input),)


def _clean(text: str, size: int = 200) -> str:
    """A text that may be shown: bounded, on one line, without hidden characters."""
    shown = "".join(" " if character in "\t\n\r" or hidden_character(character) else character for character in text)
    return shown if len(shown) <= size else f"{shown[: size - 1]}…"


def _check_characters(fields: Mapping[str, FieldKind], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        kind = fields.get(name)
        texts = [value] if isinstance(value, str) else value if kind is FieldKind.HOSTS else []
        if kind not in _CHECKED or not isinstance(texts, list | tuple):
            continue
        for text in texts:
            hidden = hidden_character(str(text), allowed="\t\n" if kind is FieldKind.COMMAND else "")
            if hidden is not None:
                raise RefusedError(
                    "rookery:characters",
                    f"The field {name} holds the control or format character {hidden}: write it without; text that "
                    "needs such characters goes into a file with Write.",
                )


_CHECKED: Final = frozenset(
    {
        FieldKind.COMMAND,
        FieldKind.READ_PATH,
        FieldKind.WRITE_PATH,
        FieldKind.FILE_GLOB,
        FieldKind.URL,
        FieldKind.HOSTS,
    }
)


def _hosts(given: Mapping[str, Any], fields: Mapping[str, FieldKind]) -> tuple[str, ...]:
    found: list[str] = []
    for name, value in given.items():
        kind = fields.get(name)
        try:
            if kind is FieldKind.URL and isinstance(value, str):
                found.append(url_host(value)[0])
            elif kind is FieldKind.HOSTS and value:
                found.extend(parse_host(str(host)) for host in value)
        except HostError as error:
            raise RefusedError("rookery:host", f"{name}: {error}.") from None
    return tuple(dict.fromkeys(found))


def _claim(path: ResolvedPath, *, reads: bool, writes: bool) -> PathClaim:
    forms = tuple(dict.fromkeys(form for candidate in path.candidates for form in denial_forms(candidate)))
    return PathClaim(path.candidates, forms, None, reads, writes)


def _glob_claim(pattern: str, start: ResolvedPath, *, writes: bool, deep: bool, plain: bool = True) -> PathClaim:
    """The claim of a pattern: its directory as far as it is literal, and what it may match below."""
    base = _claim(start, reads=True, writes=writes)
    steps = [step for step in folded(pattern).split("/") if step not in ("", ".")]
    glob = (*(step for step in base.forms[0].split("/") if step), *steps, *(("**",) if deep else ()))
    return PathClaim(base.candidates, base.forms, glob, True, writes, deep, plain)


def _claims(
    given: Mapping[str, Any], fields: Mapping[str, FieldKind], facts: Facts, *, searches: bool
) -> tuple[PathClaim, ...]:
    """The paths of a file tool's call."""
    claims: list[PathClaim] = []
    root: ResolvedPath | None = None
    try:
        for name, value in given.items():
            kind = fields[name]
            if isinstance(value, str) and kind in (FieldKind.READ_PATH, FieldKind.WRITE_PATH):
                root = resolve(value, facts)
                claims.append(_claim(root, reads=kind is FieldKind.READ_PATH, writes=kind is FieldKind.WRITE_PATH))
        if not searches:
            return tuple(claims)
        if root is None:
            root = resolve(facts.cwd or facts.workspace, facts)
            claims.append(_claim(root, reads=True, writes=False))
        patterns = [
            value for name, value in given.items() if fields[name] is FieldKind.FILE_GLOB and isinstance(value, str)
        ]
        narrowing = [pattern for pattern in patterns if not pattern.startswith("!")]
        if not narrowing:
            claims[-1] = PathClaim(claims[-1].candidates, claims[-1].forms, deep=True)
        start = root
        claims.extend(_search_claim(pattern, start, facts) for pattern in narrowing)
    except UnresolvablePathError as error:
        raise RefusedError("rookery:path", f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    return tuple(claims)


def _search_claim(pattern: str, root: ResolvedPath, facts: Facts) -> PathClaim:
    """The claim of a Glob pattern or a Grep filter: the start of it that is literal may lead elsewhere."""
    if len(pattern) > MAX_TEXT_FIELD:
        raise UnresolvablePathError("the pattern is too long")
    special = min((place for place, character in enumerate(pattern) if character in "{}\\*?["), default=len(pattern))
    literal = pattern[:special].rpartition("/")[0] + "/" if "/" in pattern[:special] else ""
    rest = pattern[len(literal) :]
    if any(character in rest for character in "{}\\"):
        # Alternatives and escapes: what it matches is not worked out, so it may match anything below.
        rest = "**"
    if ".." in rest.split("/"):
        raise UnresolvablePathError("the pattern goes up behind a wildcard")
    start = resolve(literal, facts, cwd=root.candidates[-1]) if literal.strip("/") or literal == "/" else root
    # A filter without a slash holds at every depth.
    claim = _glob_claim(rest if "/" in pattern else f"**/{rest}", start, writes=False, deep=False)
    return replace(claim, filtered=rest != "**")


def _bash_parts(request: ToolRequest, facts: Facts) -> tuple[Part, ...]:
    command = request.input["command"]
    call = Part(PartKind.TOOL, "Bash", "Bash", _clean(command), needs_allow=False, input=request.input)
    try:
        unwrapped = _unwrapped(command)
    except BrokenScriptError as error:
        raise RefusedError("rookery:script", f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    builder = _BashParts(facts, unwrapped)
    found = builder.build()
    doubts = tuple(dict.fromkeys((*unwrapped.doubts, *builder.doubts)))
    if doubts:
        found = [replace(part, unproven=True) for part in found]
        found.append(Part(PartKind.SCRIPT, "Bash", "Bash", _clean(command), doubts=doubts, unproven=True))
    return (call, *found)


@lru_cache(maxsize=256)
def _unwrapped(command: str) -> Unwrapped:
    # The hook and the second gate judge the same command one after the other. Nobody changes the value.
    return unwrap(read_script(command))


class _BashParts:
    """Turns the steps of a script into parts, keeping track of where each may run."""

    def __init__(self, facts: Facts, unwrapped: Unwrapped) -> None:
        self._facts = facts
        self._unwrapped = unwrapped
        start = facts.cwd or facts.workspace
        self._directories: dict[str, None] = dict.fromkeys(resolve(start, facts, cwd="/").candidates)
        self._parts: list[Part] = []
        self._claimed = 0
        self.doubts: dict[str, None] = {}

    def build(self) -> list[Part]:
        for step in self._unwrapped.steps:
            if isinstance(step, Surroundings):
                self._surroundings(step)
            else:
                self._command(step)
        return self._parts

    def _surroundings(self, step: Surroundings) -> None:
        for assignment in step.assignments:
            safe = assignment.name in programs.SAFE_VARIABLES
            self._parts.append(
                Part(
                    PartKind.ASSIGNMENT,
                    "Bash",
                    "Bash",
                    _clean(f"{assignment.name}={assignment.value.text}"),
                    needs_allow=not safe and step.certain,
                    certain=step.certain,
                    opaque=not safe and any(fnmatchcase(assignment.name, one) for one in programs.STEERING_VARIABLES),
                    variables=(assignment.name,),
                    directories=tuple(self._directories),
                )
            )
        for redirect in step.redirects:
            self._file(redirect, certain=step.certain)

    def _file(self, redirect: Redirect, *, certain: bool) -> None:
        target = redirect.target
        if target.kind is WordKind.UNKNOWN or (target.kind is WordKind.LITERAL and target.text in _NO_FILES):
            return
        if target.kind is WordKind.GLOB:
            self.doubts["a redirection to a pattern"] = None
            return
        if target.text.startswith(("/dev/tcp/", "/dev/udp/")):
            raise RefusedError("rookery:network", "Redirections to the network are not allowed.")
        claim = self._resolved(target, reads=redirect.reads, writes=redirect.writes)
        if claim is None:
            raise RefusedError("rookery:path", "A redirection leads to a path that cannot be judged.")
        for kind, tool, wanted in (
            (PartKind.WRITE, "Write", redirect.writes),
            (PartKind.READ, "Read", redirect.reads),
        ):
            if wanted:
                self._parts.append(
                    Part(
                        kind,
                        tool,
                        "Bash",
                        _clean(target.text),
                        needs_allow=certain,
                        claims=(claim,),
                        directories=tuple(self._directories),
                    )
                )

    def _resolved(self, word: Word, *, reads: bool, writes: bool) -> PathClaim | None:
        """The claim of one word in every directory it may be read from, or None when it is no path."""
        text = word.text
        # Only an unquoted tilde is the home; and a backslash is a character like any other to a shell's programs.
        if text.startswith("~") and not word.tilde:
            text = f"./{text}"
        found: dict[str, None] = {}
        try:
            for directory in self._directories:
                found.update(dict.fromkeys(resolve(text, self._facts, cwd=directory, from_shell=True).candidates))
                if text.startswith(("/", "~")):
                    break
        except UnresolvablePathError:
            return None
        return _claim(ResolvedPath(text, tuple(found)), reads=reads, writes=writes)

    def _operand_claims(self, operand: Operand, tilde: bool) -> list[PathClaim]:
        self._claimed += len(self._directories)
        if self._claimed > MAX_CLAIMS:
            raise RefusedError("rookery:script", "The command names too many files: put it into a script file.")
        if not operand.glob:
            claim = self._resolved(
                Word(operand.text, tilde=tilde and operand.text.startswith("~")),
                reads=operand.reads,
                writes=operand.writes,
            )
            if claim is None:
                return []
            return [replace(claim, deep=operand.deep, whole=operand.whole, plain=operand.plain)]
        steps = operand.text.split("/")
        count = next((place for place, step in enumerate(steps) if not _GLOB.isdisjoint(step)), len(steps))
        literal = "/".join(steps[:count]) + ("/" if count else "")
        rest = "/".join(f"{UNDOTTED}{step}" if step[:1] in _GLOB else step for step in steps[count:])
        claims = []
        for directory in self._directories:
            try:
                start = resolve(literal or directory, self._facts, cwd=directory, from_shell=True)
            except UnresolvablePathError:
                continue
            if ".." not in steps[count:]:
                claims.append(_glob_claim(rest, start, writes=operand.writes, deep=operand.deep, plain=operand.plain))
            else:
                self.doubts["a pattern that goes up"] = None
        return claims

    def _command(self, invocation: Invocation) -> None:
        words = invocation.words
        claims: list[PathClaim] = []
        tildes = {word.text for word in words if word.tilde}
        for operand in operands(invocation):
            claims.extend(self._operand_claims(operand, operand.text in tildes))
        text = _clean(" ".join(word.text for word in words[:50]))
        if invocation.name == "cd" and invocation.certain:
            self._change_directory(invocation, text, tuple(claims))
            return
        if any(word.kind is WordKind.GLOB and word.text[:1] in _GLOB for word in words[1:]):
            # The names it stands for may begin with a dash.
            self.doubts["a pattern that may become an option"] = None
        for word in written(invocation):
            self._file(Redirect(word, writes=True, reads=False), certain=invocation.certain)
        self._parts.append(
            Part(
                PartKind.COMMAND,
                "Bash",
                "Bash",
                text,
                needs_allow=invocation.certain
                and not (invocation.name in programs.HARMLESS and all(word.known for word in words)),
                words=words,
                names=self._names(words[0]),
                exact_only=invocation.danger,
                runner=invocation.runner,
                open_ended=invocation.open_ended,
                opaque=invocation.opaque or invocation.open_ended,
                certain=invocation.certain,
                claims=tuple(claims),
                directories=tuple(self._directories),
                hosts=hosts(invocation),
                variables=tuple(assignment.name for assignment in invocation.command.assignments),
            )
        )

    def _names(self, program: Word) -> tuple[str, ...]:
        """What the program may be called: as written, as the tables call it, and at every end of its links."""
        written_name = folded(program.text.rsplit("/", 1)[-1])
        names = [written_name, program_name(program.text)]
        if "/" in program.text and program.known:
            claim = self._resolved(program, reads=True, writes=False)
            for form in claim.forms if claim is not None else ():
                names.extend((posixpath.basename(form), program_name(form)))
        return tuple(dict.fromkeys(names))

    def _change_directory(self, invocation: Invocation, text: str, claims: tuple[PathClaim, ...]) -> None:
        targets = [word for word in invocation.words[1:] if word.text not in ("-P", "-L", "-e", "-@", "--")]
        target = targets[0] if targets else Word("~", tilde=True)
        claim = None
        if target.known and target.text not in ("-", "") and len(targets) < 2:
            claim = self._resolved(target, reads=True, writes=False)
        if claim is None:
            self.doubts["a change of directory that cannot be followed"] = None
        else:
            if invocation.command.in_loop and not target.text.startswith("/"):
                self.doubts["a change of directory in a loop"] = None
            # It may fail or be skipped, so where the script was stays possible too.
            self._directories.update(dict.fromkeys(claim.candidates))
            if len(self._directories) > MAX_DIRECTORIES:
                raise RefusedError("rookery:script", "The command changes its directory too often.")
        inside = claim is not None and all(is_below(place, self._facts.workspace) for place in claim.candidates)
        self._parts.append(
            Part(
                PartKind.DIRECTORY,
                "Bash",
                "Bash",
                text,
                needs_allow=not inside,
                words=invocation.words,
                names=("cd",),
                claims=claims if claim is None else (claim,),
                directories=tuple(self._directories),
            )
        )
