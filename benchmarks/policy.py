"""How long ``decide`` takes for typical shell commands, with 4 layers of 200 rules each, and of 200 in all.

The target is a median of 1 ms for each. Every command is new to the engine, so nothing is answered from its cache of
parsed commands. Run it with ``python benchmarks/policy.py``.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Final

from policies import Facts, Policy, ToolRequest, combine, decide, parse_policy

TARGET_MS: Final = 1.0
RULES: Final = 200
LAYERS: Final = ("organisation", "profile", "parent", "session")
ROUNDS: Final = 40

COMMANDS: Final = (
    "npm test -- --run case{n}",
    "git status && git diff --stat HEAD~{n}",
    "cd src && ls -la module{n}",
    "python -m pytest tests/unit/test_{n}.py -x -q 2>&1 | tail -20",
    "grep -n 'def main' src/module{n}.py | head -5",
    "mkdir -p build/{n} && cp README.md build/{n}/ && echo done > build/{n}/log.txt",
    "git add src/a{n}.py && git commit -m 'Fix number {n}'",
    "timeout 30 node scripts/check.js --number {n}",
    "cat <<'EOF' > notes{n}.md\nsome text\nand more\nEOF",
    "sed -n '1,{n}p' pyproject.toml; wc -l src/*.py",
    "for i in 1 2 3; do echo $i {n}; done",
    "CI=1 cargo build --release --features f{n} > /tmp/build.log 2>&1 || tail -5 /tmp/build.log",
)


def layer_text(seed: int, rules: int) -> str:
    """A policy with as many rules as asked, of every kind."""
    lines = ["version: 1", "rules:"]
    for number in range(rules - 1):
        name = f"r{seed}-{number}"
        kind = number % 5
        if kind == 0:
            rule = f"effect: deny, advisory: true, tools: [Bash], when: {{argv: [tool{number}, push]}}"
        elif kind == 1:
            path = f"workspace/secret{number}/**"
            rule = f'effect: deny, advisory: true, tools: [Bash, Read, Write], when: {{path: ["{path}"]}}'
        elif kind == 2:
            rule = f"effect: allow, tools: [Bash], when: {{argv: [program{number}, [run, test]]}}"
        elif kind == 3:
            rule = f'effect: ask, tools: [Write, Edit], when: {{path: ["**/generated{number}/*.lock"]}}'
        else:
            rule = f"effect: deny, tools: [WebFetch], when: {{domain: [host{number}.example.com]}}"
        lines.append(f"  - {{id: {name}, {rule}}}")
    lines.append("  - {id: shell, effect: allow, tools: [Bash, Read, Write, Edit, Grep]}")
    return "\n".join(lines)


def policy(rules_per_layer: int) -> Policy:
    """Four layers of so many rules each."""
    layers = {name: parse_policy(layer_text(seed, rules_per_layer), name=name) for seed, name in enumerate(LAYERS)}
    return combine(**layers)


def measure(given: Policy, first: int) -> list[float]:
    """Milliseconds of each decision; the commands are numbered from ``first`` on."""
    facts = Facts()
    decide(ToolRequest("Bash", {"command": "true"}), given, facts)
    times = []
    for number in range(first, first + ROUNDS):
        for command in COMMANDS:
            request = ToolRequest("Bash", {"command": command.replace("{n}", str(number + 1))})
            start = time.perf_counter()
            decide(request, given, facts)
            times.append((time.perf_counter() - start) * 1000)
    return times


def main() -> int:
    reached = True
    for place, rules_per_layer in enumerate((RULES, RULES // len(LAYERS))):
        given = policy(rules_per_layer)
        times = sorted(measure(given, place * ROUNDS))
        median = statistics.median(times)
        rules = sum(len(layer.rules) for layer in given.layers)
        print(
            f"decide: median {median:.3f} ms, p95 {times[int(len(times) * 0.95)]:.3f} ms, worst {times[-1]:.3f} ms "
            f"({len(times)} shell commands, {rules} rules in {len(given.layers)} layers; target {TARGET_MS} ms)"
        )
        reached = reached and median <= TARGET_MS
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
