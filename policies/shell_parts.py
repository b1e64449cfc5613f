"""A shell command taken apart: every program, redirection, assignment and change of directory is a part."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from policies.globs import UNDOTTED
from policies.parts import Part, PartKind, PathClaim, RefusedError, claim_of, clean, glob_claim
from policies.paths import ResolvedPath, UnresolvablePathError, folded, is_below, resolve
from policies.shell import programs
from policies.shell.access import Operand, hosts, operands, written
from policies.shell.invocations import Invocation, Surroundings, Unwrapped, program_name, unwrap
from policies.shell.script import BrokenScriptError, Redirect
from policies.shell.syntax import read_script
from policies.shell.words import Word, WordKind
from policies.types import Facts, ToolRequest

MAX_DIRECTORIES: Final = 16
MAX_CLAIMS: Final = 4000
_GLOB: Final = frozenset("*?[")
_NO_FILES: Final = frozenset({"/dev/null", "/dev/stdout", "/dev/stderr", "/dev/stdin", "/dev/tty", "/dev/zero"})


def bash_parts(request: ToolRequest, facts: Facts) -> tuple[Part, ...]:
    command = request.input["command"]
    call = Part(PartKind.TOOL, "Bash", "Bash", clean(command), needs_allow=False, input=request.input)
    try:
        unwrapped = _unwrapped(command)
    except BrokenScriptError as error:
        raise RefusedError("rookery:script", f"{str(error)[:1].upper()}{str(error)[1:]}.") from None
    builder = _BashParts(facts, unwrapped)
    found = builder.build()
    doubts = tuple(dict.fromkeys((*unwrapped.doubts, *builder.doubts)))
    if doubts:
        found = [replace(part, unproven=True) for part in found]
        found.append(Part(PartKind.SCRIPT, "Bash", "Bash", clean(command), doubts=doubts, unproven=True))
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
                    clean(f"{assignment.name}={assignment.value.text}"),
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
        claim = self._resolved(target.text, target.tilde, reads=redirect.reads, writes=redirect.writes)
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
                        clean(target.text),
                        needs_allow=certain,
                        claims=(claim,),
                        directories=tuple(self._directories),
                    )
                )

    def _resolved(self, text: str, tilde: bool, *, reads: bool, writes: bool) -> PathClaim | None:
        """The claim of one word in every directory it may be read from, or None when it is no path."""
        # Only an unquoted tilde is the home; and a backslash is a character like any other to a shell's programs.
        if text.startswith("~") and not tilde:
            text = f"./{text}"
        found: dict[str, None] = {}
        try:
            for directory in self._directories:
                found.update(dict.fromkeys(resolve(text, self._facts, cwd=directory, from_shell=True).candidates))
                if text.startswith(("/", "~")):
                    break
        except UnresolvablePathError:
            return None
        return claim_of(ResolvedPath(text, tuple(found)), reads=reads, writes=writes)

    def _operand_claims(self, operand: Operand, tilde: bool) -> list[PathClaim]:
        self._claimed += len(self._directories)
        if self._claimed > MAX_CLAIMS:
            raise RefusedError("rookery:script", "The command names too many files: put it into a script file.")
        if not operand.glob:
            claim = self._resolved(operand.text, tilde, reads=operand.reads, writes=operand.writes)
            if claim is None:
                return []
            if operand.deep or operand.whole or not operand.plain:
                claim = replace(claim, deep=operand.deep, whole=operand.whole, plain=operand.plain)
            return [claim]
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
                claims.append(glob_claim(rest, start, writes=operand.writes, deep=operand.deep, plain=operand.plain))
            else:
                self.doubts["a pattern that goes up"] = None
        return claims

    def _command(self, invocation: Invocation) -> None:
        words = invocation.words
        claims: list[PathClaim] = []
        tildes = {word.text[word.text.find("~") :] for word in words if word.tilde}
        for operand in operands(invocation):
            claims.extend(self._operand_claims(operand, operand.text in tildes))
        text = clean(" ".join(word.text for word in words[:50]))
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
                and not (
                    invocation.name in programs.HARMLESS
                    and invocation.danger is None
                    and all(word.known for word in words)
                ),
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
            claim = self._resolved(program.text, program.tilde, reads=True, writes=False)
            for form in claim.forms if claim is not None else ():
                names.extend((posixpath.basename(form), program_name(form)))
        return tuple(dict.fromkeys(names))

    def _change_directory(self, invocation: Invocation, text: str, claims: tuple[PathClaim, ...]) -> None:
        targets = [word for word in invocation.words[1:] if word.text not in ("-P", "-L", "-e", "-@", "--")]
        target = targets[0] if targets else Word("~", tilde=True)
        claim = None
        if target.known and target.text not in ("-", "") and len(targets) < 2:
            claim = self._resolved(target.text, target.tilde, reads=True, writes=False)
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
