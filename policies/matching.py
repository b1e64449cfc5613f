"""What it means that a rule matches a part of a request.

Two readings of "matches": an allow must be *proved* (every path, every word, every end of a link), a denial need only
be *possible* (any path, any spelling, any program that may be meant).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from policies.globs import PathPattern
from policies.hosts import host_matches
from policies.parts import Part, PartKind, PathClaim
from policies.path_sets import CompiledPaths, compile_paths
from policies.paths import folded
from policies.rules import READ_TOOLS, WRITE_TOOLS, Rule, When
from policies.shell.words import Word, WordKind
from policies.types import Effect, Facts

_PROBE: Final = "/\x02/\x02"
_SAME_FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "r": ("R", "--recursive"),
    "R": ("r", "--recursive"),
    "f": ("--force",),
    "--recursive": ("r", "R"),
    "--force": ("f",),
}
"""Spellings of the flags that denials most often name."""


@dataclass(frozen=True)
class Matcher:
    """Matching for one workspace, home and role.

    Args:
        facts: what is known.
        role: the role of the request.
    """

    facts: Facts
    role: str | None

    def applies(self, rule: Rule) -> bool:
        """Whether role and state let a rule speak at all."""
        if rule.roles and self.role not in rule.roles:
            return False
        return not rule.when.state or all(condition.holds(self.facts) for condition in rule.when.state)

    def _paths(self, patterns: tuple[PathPattern, ...]) -> CompiledPaths:
        return compile_paths(patterns, self.facts.workspace, self.facts.home)

    # An allow is proved.

    def proves(self, rule: Rule, part: Part) -> bool:
        """Whether a rule certainly covers a part."""
        if not part.certain or not self.applies(rule):
            return False
        when = rule.when
        if part.called == "Bash" and not when.on_call and rule.tools.covers("Bash"):
            return True
        if part.kind is PartKind.TOOL:
            return rule.tools.covers(part.tool) and self._proves_call(when, part)
        if part.kind in (PartKind.READ, PartKind.WRITE):
            return self._proves_file(rule, part)
        if not rule.tools.covers("Bash") or when.domains or when.input:
            return part.kind is PartKind.COMMAND and rule.tools.covers("Bash") and self._proves_command(when, part)
        if part.kind is PartKind.ASSIGNMENT:
            return bool(when.env) and all(
                any(fnmatchcase(name, pattern) for pattern in when.env) for name in part.variables
            )
        if part.kind is PartKind.DIRECTORY:
            return self._proves_words(when, part) and self._proves_paths(when, part)
        return part.kind is PartKind.COMMAND and self._proves_command(when, part)

    def _proves_call(self, when: When, part: Part) -> bool:
        if when.argv or when.env or when.cwd:
            return False
        if when.domains and not (
            part.hosts and all(any(host_matches(one, host) for one in when.domains) for host in part.hosts)
        ):
            return False
        return self._proves_paths(when, part) and _input_holds(when, part)

    def _proves_paths(self, when: When, part: Part) -> bool:
        if not when.paths:
            return True
        claims = [claim for claim in part.claims if claim.plain]
        compiled = self._paths(when.paths)
        return bool(claims) and all(self._proves_claim(compiled, when, claim) for claim in claims)

    @staticmethod
    def _proves_claim(compiled: CompiledPaths, when: When, claim: PathClaim) -> bool:
        if (when.access == "read" and claim.writes) or (when.access == "write" and not claim.writes):
            return False
        below = claim.glob is not None or claim.deep
        return all(
            compiled.allows(path) and (not below or compiled.allows(f"{path.rstrip('/')}{_PROBE}"))
            for path in claim.candidates
        )

    def _proves_file(self, rule: Rule, part: Part) -> bool:
        own = WRITE_TOOLS if part.kind is PartKind.WRITE else READ_TOOLS
        when = rule.when
        if when.argv or when.env or when.domains or when.input:
            return False
        if when.cwd and not self._proves_cwd(when, part):
            return False
        if not own.isdisjoint(rule.tools.exact):
            return self._proves_paths(when, part)
        return bool(when.paths) and rule.tools.covers("Bash") and self._proves_paths(when, part)

    def _proves_cwd(self, when: When, part: Part) -> bool:
        return all(self._paths(when.cwd).allows(directory) for directory in part.directories)

    def _proves_words(self, when: When, part: Part) -> bool:
        if not when.argv:
            return part.exact_only is None and not part.open_ended
        for form in when.argv:
            if len(part.words) < len(form) or (when.exact and (len(part.words) != len(form) or part.open_ended)):
                continue
            if (part.exact_only is not None or part.open_ended) and not when.exact:
                continue
            if part.runner and len(form) < 2:
                continue
            if all(
                word.known and (wanted == word.text or (wanted == "*" and place > 0))
                for place, (wanted, word) in enumerate(zip(form, part.words, strict=False))
            ):
                return True
        return False

    def _proves_command(self, when: When, part: Part) -> bool:
        if any(word.kind is WordKind.UNKNOWN for word in part.words):
            return False
        if when.env and not all(any(fnmatchcase(name, one) for one in when.env) for name in part.variables):
            return False
        if when.domains and not (
            part.hosts and all(any(host_matches(one, host) for one in when.domains) for host in part.hosts)
        ):
            return False
        if when.cwd and not self._proves_cwd(when, part):
            return False
        if when.env and not when.argv and not when.paths and not when.cwd:
            return False
        return self._proves_words(when, part) and self._proves_paths(when, part) and _input_holds(when, part)

    # A denial need only be possible.

    def possible(self, rule: Rule, part: Part) -> bool:
        """Whether a rule may be meant by a part: for denials and rewrites."""
        return self._names(rule, part) and self.applies(rule) and self._conditions_possible(rule, part)

    def lacking(self, rule: Rule, part: Part) -> str:
        """Why a rule does not match a part, in words."""
        file_part = part.kind in (PartKind.COMMAND, PartKind.DIRECTORY, PartKind.SCRIPT)
        if not self._names(rule, part) or (rule.proves and file_part and not rule.tools.covers(part.called)):
            return f"speaks of other tools than {part.called}"
        if rule.roles and self.role not in rule.roles:
            return "is for other roles"
        if not self.applies(rule):
            return "its condition on the session's history does not hold"
        if rule.effect is Effect.ALLOW and self._conditions_possible(rule, part):
            if not part.certain:
                return "this is only one reading of the command, which nothing can allow"
            if part.exact_only is not None:
                return f"needs exact: true ({part.exact_only})"
            return "its conditions may hold, but that cannot be proved"
        return "its conditions do not hold"

    @staticmethod
    def _names(rule: Rule, part: Part) -> bool:
        tools = rule.tools
        means = tools.covers if rule.effect is Effect.ALLOW else tools.may_mean
        if means(part.called) or means(part.tool):
            return True
        if part.kind is PartKind.TOOL:
            return rule.guards_files_from(part.tool)
        if part.kind is PartKind.WRITE:
            return not WRITE_TOOLS.isdisjoint(tools.exact)
        if part.kind is PartKind.READ:
            return not READ_TOOLS.isdisjoint(tools.exact)
        # A program's words are files only where a rule names files.
        return (
            part.kind in (PartKind.COMMAND, PartKind.DIRECTORY)
            and bool(rule.when.paths)
            and bool((WRITE_TOOLS | READ_TOOLS) & tools.exact)
        )

    def _conditions_possible(self, rule: Rule, part: Part) -> bool:
        when = rule.when
        if not when.on_call:
            return True
        if part.kind is PartKind.SCRIPT:
            return False
        if when.argv and not any(self._words_possible(form, part, exact=when.exact) for form in when.argv):
            return False
        if when.env and not any(
            fnmatchcase(name.casefold(), one.casefold()) for name in part.variables for one in when.env
        ):
            return False
        if when.cwd and not any(self._paths(when.cwd).denies(folded(directory)) for directory in part.directories):
            return False
        if when.domains and not any(host_matches(one, host) for host in part.hosts for one in when.domains):
            return False
        if not _input_holds(when, part):
            return False
        return not when.paths or self._paths_possible(rule, part)

    def _paths_possible(self, rule: Rule, part: Part) -> bool:
        compiled = self._paths(rule.when.paths)
        by_name = rule.tools.covers(part.called) or rule.tools.covers(part.tool)
        for claim in part.claims:
            reads, writes = claim.reads, claim.writes
            if not by_name and part.kind is not PartKind.TOOL:
                # The rule speaks of file tools: a program's use of the file counts as theirs.
                reads = reads and not READ_TOOLS.isdisjoint(rule.tools.exact)
                writes = writes and not WRITE_TOOLS.isdisjoint(rule.tools.exact)
            if rule.when.access == "read":
                writes = False
            elif rule.when.access == "write":
                reads = False
            if not reads and not writes:
                continue
            if rule.advisory and not reads and part.kind is PartKind.COMMAND:
                # What a program certainly writes is a part of its own; that it might is not enough for advice.
                continue
            if claim.glob is not None:
                if compiled.meets(claim.glob, below=not claim.filtered):
                    return True
            elif compiled.reaches(
                claim.forms,
                deep=claim.deep and reads and not rule.advisory,
                whole=claim.whole and writes and not rule.advisory,
            ):
                return True
        return False

    @staticmethod
    def _words_possible(form: Sequence[str], part: Part, *, exact: bool) -> bool:
        if not part.words:
            return False
        program = folded(form[0])
        if program != "*" and program not in part.names and program != folded(part.words[0].text):
            return False
        return _follows([folded(token) for token in form[1:]], part.words[1:])


def _input_holds(when: When, part: Part) -> bool:
    """Whether every named field has one of its values; texts may be globs. Types must agree: ``true`` is not 1."""
    for name, values in when.input:
        given = part.input.get(name)
        if not any(
            fnmatchcase(given, value)
            if isinstance(value, str) and isinstance(given, str)
            else type(value) is type(given) and value == given
            for value in values
        ):
            return False
    return True


def _follows(wanted: list[str], words: Sequence[Word]) -> bool:
    """Whether wanted words may begin the arguments, with options between them and flags in any order and spelling."""
    flags = [token for token in wanted if token.startswith("-") and len(token) > 1]
    plain = [token for token in wanted if not (token.startswith("-") and len(token) > 1)]
    given = [folded(word.text) for word in words]
    for flag in flags:
        if not _flag_given(flag, given):
            return False
    # Positions from which the next plain token may be looked for; an option may or may not take the next word.
    starts = {0}
    for token in plain:
        found: set[int] = set()
        for start in starts:
            index, limit = start, len(given)
            reachable = {start}
            while index < limit:
                if index in reachable:
                    unknown = words[index].kind is not WordKind.LITERAL
                    if token in ("*", given[index]) or unknown:
                        found.add(index + 1)
                    if given[index].startswith("-"):
                        reachable.update((index + 1, index + 2))
                index += 1
                if index > max(reachable):
                    break
        if not found:
            return False
        starts = found
    return True


def _flag_given(flag: str, given: Sequence[str]) -> bool:
    """Whether a flag stands among words: alone, with a value, abbreviated, in a cluster, or under its other name."""
    if flag.startswith("--"):
        name = flag.split("=", 1)[0]
        if any(
            word == flag or (word.startswith("--") and len(word) > 3 and name.startswith(word.split("=", 1)[0]))
            for word in given
        ):
            return True
        return any(_letter_given(letter, given) for letter in _SAME_FLAGS.get(name, ()) if len(letter) == 1)
    if flag in given:
        return True
    return re.fullmatch(r"-[a-z0-9]+", flag) is not None and all(
        _letter_given(letter, given)
        or any(
            word.startswith("--") and len(word) > 3 and other.startswith(word)
            for other in _SAME_FLAGS.get(letter, ())
            for word in given
        )
        for letter in flag[1:]
    )


def _letter_given(letter: str, given: Sequence[str]) -> bool:
    return any(word.startswith("-") and not word.startswith("--") and letter in word[1:] for word in given)
