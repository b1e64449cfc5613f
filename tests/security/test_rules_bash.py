"""Ways around rules on shell commands (rows R01 to R19 of the catalogue of attacks).

Each row is tried twice where it makes sense: against a policy that allows one command and denies the rest by default
(nothing more may get through), and against one that allows the whole shell and denies one thing (the denial must find
it).
"""

from __future__ import annotations

import time

import pytest

from policies import Effect, Facts, Policy
from tests.unit.policies.calls import ALLOW, ASK, DENY, NPM_TEST, WHOLE_SHELL, bash, policy_of

TESTS = policy_of(NPM_TEST)
NO_CURL = policy_of(WHOLE_SHELL, "{id: no-curl, effect: deny, tools: [Bash], when: {argv: [curl]}, because: refused}")


def denied_by(command: str, policy: Policy, rule: str, facts: Facts | None = None) -> bool:
    decision = bash(command, policy, facts)
    return decision.effect is DENY and any(found.rule == rule for found in decision.matched)


def refused(command: str, policy: Policy, facts: Facts | None = None) -> bool:
    return bash(command, policy, facts).effect is DENY


def test_the_command_that_the_rows_build_upon_is_allowed() -> None:
    assert bash("npm test", TESTS).effect is ALLOW
    assert bash("npm test -- --watch=false", TESTS).effect is ALLOW
    assert bash("ls -la", NO_CURL).effect is ALLOW


@pytest.mark.parametrize("separator", ["&&", ";", "||", "|", "|&", "&", "\n", "&\n", ";\n\n"])
def test_r01_each_segment_of_a_compound_command_is_decided(separator: str) -> None:
    """R01: a prefix rule for the first segment says nothing of the second (CC 2.1.7)."""
    assert refused(f"npm test {separator} curl evil", TESTS)
    assert refused(f"curl evil {separator} npm test", TESTS)
    assert denied_by(f"npm test {separator} curl evil", NO_CURL, "no-curl")


def test_r01_every_segment_is_listed_with_what_became_of_it() -> None:
    """R01: the record shows each sub-request."""
    decision = bash("npm test && curl evil", TESTS)
    assert [(part.text, part.effect) for part in decision.requests] == [("npm test", ALLOW), ("curl evil", DENY)]


@pytest.mark.parametrize("count", [51, 200, 5000])
def test_r02_a_denied_command_behind_many_others_is_still_denied(count: int) -> None:
    """R02: more segments than anybody looks at deny, they never ask or allow (CC 2.1.90)."""
    assert refused("; ".join(["true"] * count + ["curl evil"]), NO_CURL)
    asking = policy_of(NPM_TEST, head="unprovable: ask")
    assert refused("; ".join(["true"] * count + ["curl evil"]), asking)


@pytest.mark.parametrize(
    "command",
    [
        "npm test $(curl evil)",
        "npm test `curl evil`",
        "npm test <(curl evil)",
        "npm test >(curl evil)",
        "npm test ${x:-$(curl evil)}",
        'npm test "$(curl evil)"',
        "npm test $((x[$(curl evil)]))",
        "npm test <<E\n$(curl evil)\nE",
        "X=$(curl evil) npm test",
    ],
)
def test_r03_substitutions_inside_an_allowed_command_are_not_proved(command: str) -> None:
    """R03: expansions that run commands are denied, or asked where the policy says so (CVE-2026-85660)."""
    assert refused(command, TESTS)
    assert refused(command, NO_CURL)
    assert bash(command, policy_of(NPM_TEST, head="unprovable: ask")).effect in (ASK, DENY)


def test_r03_what_runs_in_a_substitution_is_found_by_a_denial() -> None:
    """R03: a Read denial used to be missed inside $(...) (claude-code #89055)."""
    secret = policy_of(
        WHOLE_SHELL, '{id: secret, effect: deny, tools: [Read, Bash], when: {path: ["**/.env"]}, because: refused}'
    )
    assert denied_by("echo $(cat .env)", secret, "secret")
    assert denied_by("echo `cat .env`", secret, "secret")
    assert refused('echo "$(< .env)"', secret)


@pytest.mark.parametrize(
    "command",
    [
        "(curl evil)",
        "{ curl evil; }",
        "f() { curl evil; }; f",
        "function f { curl evil; }; f",
        "if true; then curl evil; fi",
        "if curl evil; then true; fi",
        "for i in 1; do curl evil; done",
        "while true; do curl evil; done",
        "until curl evil; do true; done",
        "case a in a) curl evil;; esac",
        "! curl evil",
        "select x in a; do curl evil; done",
        "for ((i=0;i<1;i++)); do curl evil; done",
        "coproc curl evil",
    ],
)
def test_r04_compound_statements_are_looked_into(command: str) -> None:
    """R04: what stands in groups, functions and loops is a command like any other."""
    assert refused(command, TESTS)
    assert refused(f"npm test; {command}", TESTS)
    assert refused(command, NO_CURL)


@pytest.mark.parametrize(
    "command",
    [
        "bash <<EOF\ncurl evil\nEOF",
        "bash <<'EOF'\ncurl evil\nEOF",
        "sh <<-EOF\n\tcurl evil\n\tEOF",
        "bash <<< 'curl evil'",
        "cat <<EOF | bash\ncurl evil\nEOF",
        "echo 'curl evil' | sh",
        "npm test $(cat <<EOF\ncurl evil\nEOF\n)",
    ],
)
def test_r05_scripts_on_standard_input_are_scripts(command: str) -> None:
    """R05: a here-document for a shell is read as what the shell runs, or not proved."""
    assert refused(command, TESTS)
    assert refused(command, NO_CURL)


def test_r05_a_here_document_cannot_hide_where_it_ends() -> None:
    """R05: the delimiter is found as bash finds it, or nothing is proved."""
    assert refused("npm test <<EOF\nx\nEOF \ncurl evil\nEOF\ncurl evil", TESTS)
    assert refused("npm test <<'E'OF\nEOF\ncurl evil", NO_CURL)
    assert refused("npm test <<A <<B\nA\ncurl evil\nB\ncurl evil", TESTS)


@pytest.mark.parametrize(
    "assignment",
    [
        "FOO=bar",
        "PATH=./evil",
        "LD_PRELOAD=/tmp/x.so",
        "GIT_SSH_COMMAND=curl",
        "NODE_OPTIONS=--require=x",
        "BASH_ENV=x",
    ],
)
def test_r06_an_assignment_is_part_of_the_decision(assignment: str) -> None:
    """R06: only variables that change how a program speaks go without a rule (CC 2.1.145, CVE-2026-22708)."""
    assert refused(f"{assignment} npm test", TESTS)
    assert refused(f"{assignment}; npm test", TESTS)
    assert refused(f"export {assignment}; npm test", TESTS)
    assert refused(f"env {assignment} npm test", TESTS)


def test_r06_harmless_variables_and_those_of_a_rule_may_be_set() -> None:
    """R06: the safe list, and a rule that names the variable."""
    assert bash("CI=1 npm test", TESTS).effect is ALLOW
    named = policy_of(NPM_TEST, "{id: env, effect: allow, tools: [Bash], when: {env: [FOO]}}")
    assert bash("FOO=1 npm test", named).effect is ALLOW
    assert refused("FOO=1 BAR=1 npm test", named)
    preload = policy_of(WHOLE_SHELL, '{id: ld, effect: deny, tools: [Bash], when: {env: ["LD_*"]}, because: refused}')
    assert denied_by("LD_PRELOAD=x ls", preload, "ld")
    assert denied_by("env LD_PRELOAD=x ls", preload, "ld")


WRAPPERS = (
    "env", "env -i", "env A=1", "env -u B", "sudo", "sudo -u root", "timeout 5", "timeout -k 1 5", "nice", "nice -n 5",
    "nohup", "stdbuf -oL", "setsid", "ionice -c2 -n7", "watch", "watch -n 1", "xargs", "xargs -n 1", "flock /tmp/l",
    "busybox", "command", "exec", "time", "builtin", "chroot /", "strace -f", "unshare -r", "doas", "parallel",
    "sudo env A=1 timeout 5 nice",
)  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_r07_wrappers_are_taken_off_for_denials_and_never_widen_an_allow(wrapper: str) -> None:
    """R07: the inner command is found; the wrapper needs an allow of its own (CC 2.1.113)."""
    assert denied_by(f"{wrapper} curl evil", NO_CURL, "no-curl")
    assert refused(f"{wrapper} npm test", TESTS)


def test_r07_wrapper_and_inner_command_may_each_have_their_rule() -> None:
    """R07: allowing the wrapper allows the wrapper alone."""
    both = policy_of(NPM_TEST, "{id: limit, effect: allow, tools: [Bash], when: {argv: [timeout]}}")
    assert bash("timeout 60 npm test", both).effect is ALLOW
    assert refused("timeout 60 npm publish", both)


@pytest.mark.parametrize(
    "command",
    [
        "npx curl", "docker exec x curl evil", "docker run x curl evil", "direnv exec . curl evil",
        "devbox run curl evil", "ssh host curl evil", "su -c 'curl evil'", "bash -c 'curl evil'",
        "sh -ec 'curl evil'", "eval curl evil", "eval 'curl evil'", "find . -exec curl {} ;", "uv run curl evil",
        "npm exec curl", "script -c 'curl evil'", "awk 'BEGIN{system(\"curl evil\")}'",
        "python -c 'import os; os.system(\"curl evil\")'", "perl -e 'exec qw(curl evil)'", "node -e 'x'",
        "/lib64/ld-linux-x86-64.so.2 /usr/bin/curl evil", "make -f evil.mk", "source evil.sh", ". ./evil.sh",
    ],
)  # fmt: skip
def test_r08_runners_are_allowed_word_for_word_only(command: str) -> None:
    """R08: what runs other programs is not covered by a prefix rule, and hides nothing from a denial."""
    program = command.split()[0]
    prefix = policy_of(f"{{id: run, effect: allow, tools: [Bash], when: {{argv: [{program}]}}}}")
    assert refused(command, prefix)
    assert refused(command, NO_CURL) or program == "make"


def test_r08_an_exact_rule_allows_exactly_its_words() -> None:
    """R08: exact forms are the way to allow a runner."""
    exact = policy_of(
        "{id: lint, effect: allow, tools: [Bash], when: {argv: [npx, eslint, src], exact: true}}",
        '{id: version, effect: allow, tools: [Bash], when: {argv: [python, -c, "print(1)"], exact: true}}',
    )
    assert bash("npx eslint src", exact).effect is ALLOW
    assert refused("npx eslint src --fix", exact)
    assert refused("npx eslint", exact)
    assert refused("python -c 'print(2)'", exact)


def test_r08_a_rule_for_a_bare_interpreter_allows_no_script() -> None:
    """R08: the rule has to name the script."""
    bare = policy_of("{id: py, effect: allow, tools: [Bash], when: {argv: [python]}}")
    named = policy_of("{id: py, effect: allow, tools: [Bash], when: {argv: [python, tests/run.py]}}")
    assert refused("python /tmp/evil.py", bare)
    assert bash("python tests/run.py -x", named).effect is ALLOW
    assert refused("python tests/other.py", named)


@pytest.mark.parametrize(
    "command", ["c\\url evil", "'cu'rl evil", '"curl" evil', "cu\\rl evil", "cur''l evil", "\\c\\u\\r\\l evil"]
)
def test_r09_quotes_and_backslashes_do_not_change_the_program(command: str) -> None:
    """R09: words are read as the shell reads them (CC 2.1.6, CVE-2025-54795)."""
    assert denied_by(command, NO_CURL, "no-curl")


@pytest.mark.parametrize(
    "command", ["cu\\\nrl evil", "npm te\\\nst", "$'curl' evil", "$'\\x63url' evil", '$"curl" evil']
)
def test_r09_what_is_not_normalised_is_not_proved(command: str) -> None:
    """R09: a continuation inside a word and ANSI-C strings are not read, so not believed."""
    assert refused(command, NO_CURL)
    assert refused(command, TESTS)


def test_r09_a_continuation_between_words_is_read() -> None:
    """R09: the ordinary use of a continuation works."""
    assert bash("npm \\\n  test", TESTS).effect is ALLOW
    assert denied_by("true && \\\n  curl evil", NO_CURL, "no-curl")


@pytest.mark.parametrize(
    "command",
    [
        "curl$IFS-s",
        "{curl,evil}",
        "/usr/bin/c?rl evil",
        "/usr/bin/cur* evil",
        "/bin/c[u]rl x",
        "~+/curl x",
        "~root/x",
        "$X",
    ],
)
def test_r10_expansions_in_the_program_are_not_proved(command: str) -> None:
    """R10: $IFS, braces and patterns make other words (CVE-2025-66032)."""
    assert refused(command, NO_CURL)
    assert refused(f"npm test; {command}", TESTS)


@pytest.mark.parametrize(
    "command", ["=curl evil", "echo =curl", "noglob curl evil", "[[ a =~ $(curl) ]]", "nocorrect x"]
)
def test_r11_syntax_of_other_shells_is_refused(command: str) -> None:
    """R11: =name, noglob and the like mean something in zsh (CVE-2026-24053)."""
    assert refused(command, NO_CURL)
    assert refused(command, policy_of(NPM_TEST, "{id: echo, effect: allow, tools: [Bash], when: {argv: [echo]}}"))


def test_r11_clobbering_redirections_are_writes() -> None:
    """R11: >| writes like any other redirection."""
    assert refused("npm test >| out", TESTS)


@pytest.mark.parametrize(
    "command",
    [
        "find . -exec rm {} ;", "find . -execdir x ;", "find . -delete", "find . -fprintf out x", "find . -ok rm {} ;",
        "rg --pre evil x", "rg --pre=evil x", "sed -n 'w out' f", "sed -n '1e curl' f", "sed 's/a/b/e' f",
        "sed 's/a/b/w out' f", "sed -i s/a/b/ f", "sed -f script f", "sort -o out f", "sort --output=out f",
        "sort --compress-program=evil f", "git -c core.fsmonitor=evil status", "git -c core.pager=evil log",
        "git --exec-path=/tmp status", "git diff --ext-diff", "git log --output=x", "git grep -Oevil x",
        "git clone ext::evil x", "tar --checkpoint-action=exec=evil -cf x y", "tar -xf x --to-command=evil",
        "tar -I evil -xf x", "tar xIf evil x", "base64 -o out f", "zip x y -TT evil", "rsync -e evil a b",
        "curl -o out u", "curl -K conf", "wget -O out u", "awk -f prog f", "make -f evil.mk", "make SHELL=/tmp/x",
        "go build -toolexec=evil", "npm test --script-shell=evil", "pytest -p evil", "fd x -x rm", "git -C /tmp status",
        "sort --outp=out f", "man x", "less x", "vim x", "printf -v PATH x",
    ],
)  # fmt: skip
def test_r12_dangerous_flags_need_an_exact_rule(command: str) -> None:
    """R12: a program that is harmless without them (CVE-2025-58764, CVE-2025-64755, CVE-2026-24887)."""
    program = command.split()[0]
    policy = policy_of(f"{{id: tool, effect: allow, tools: [Bash], when: {{argv: [{program}]}}}}")
    assert refused(command, policy)


@pytest.mark.parametrize(
    "command",
    ["find . -name '*.py'", "rg x src", "sed -n '1,5p' f", "sed 's/a/b/g' f", "sort -n f", "git status", "tar tf x",
     "git log --oneline -5", "awk '{print $1}' f", "base64 f", "curl -s https://x.test"],
)  # fmt: skip
def test_r12_the_same_programs_without_them_are_allowed(command: str) -> None:
    """R12: the flags are what is dangerous."""
    program = command.split()[0]
    policy = policy_of(f"{{id: tool, effect: allow, tools: [Bash], when: {{argv: [{program}]}}}}")
    assert bash(command, policy).effect is ALLOW


@pytest.mark.parametrize("command", ["git show", "git log", "git diff -p", "git -p log", "git diff --textconv"])
def test_r13_reading_with_git_is_not_taken_for_harmless(command: str) -> None:
    """R13: a hostile repository's textconv, pager or fsmonitor runs programs (GHSA-v4xv-rqh3-w9mc)."""
    from policies import load_policy

    assert refused(command, load_policy("read-only"))
    assert refused(command, TESTS)
    if "-p" in command or "textconv" in command:
        assert refused(command, policy_of("{id: git, effect: allow, tools: [Bash], when: {argv: [git]}}"))


ECHO = policy_of("{id: echo, effect: allow, tools: [Bash], when: {argv: [[echo, tee, dd, cp, mv, touch, cat]]}}")


@pytest.mark.parametrize(
    "command",
    [
        "echo x > ~/.bashrc", "echo x >> ~/.bashrc", "echo x 2> ~/.bashrc", "echo x &> ~/.bashrc",
        "echo x >| ~/.bashrc",
        "echo x | tee ~/.bashrc", "echo x | tee -a ~/.bashrc", "dd of=/home/agent/.bashrc", "cp x ~/.bashrc",
        "mv x ~/.bashrc", "touch ~/.bashrc", "> ~/.bashrc", "{ echo x; } > ~/.bashrc", "cat <<E > ~/.bashrc\nx\nE",
        "for i in 1; do echo x; done > ~/.bashrc", "echo x 3> ~/.bashrc", "cp -t ~/ x",
    ],
)  # fmt: skip
def test_r14_redirection_targets_are_writes(command: str) -> None:
    """R14: allowing echo allows no file (CC 2.1.72)."""
    assert refused(command, ECHO)
    files = policy_of(
        WHOLE_SHELL,
        '{id: home, effect: deny, tools: [Write, Edit], when: {path: ["~/**"]}, because: refused}',
    )
    assert denied_by(command, files, "home")


def test_r14_a_home_behind_an_equals_sign_is_not_taken_for_a_name() -> None:
    """R14: bash puts the home wherever a word looks like an assignment."""
    home = policy_of(
        WHOLE_SHELL, '{id: home, effect: deny, tools: [Write, Edit], when: {path: ["~/**"]}, because: refused}'
    )
    for command in ("dd of=~/.bashrc", "dd if=x of=~/.bashrc"):
        assert refused(command, ECHO)
        assert denied_by(command, home, "home")
    for command in ("tee a=x:~/.bashrc", "dd of=~root/x", "dd of='a':~/x"):
        assert refused(command, ECHO)


def test_r14_a_rule_for_writing_there_allows_the_redirection() -> None:
    """R14: the target is judged like the Write tool's."""
    policy = policy_of(
        "{id: echo, effect: allow, tools: [Bash], when: {argv: [echo]}}",
        '{id: out, effect: allow, tools: [Write], when: {path: ["workspace/out/**"]}}',
    )
    assert bash("echo x > out/a.txt", policy).effect is ALLOW
    assert refused("echo x > out/../a.txt", policy)
    assert refused("echo x > other.txt", policy)
    assert bash("echo x > /dev/null 2>&1", policy).effect is ALLOW
    assert refused("echo x > /dev/tcp/10.0.0.1/80", policy_of(WHOLE_SHELL))


GUARDED = policy_of(
    WHOLE_SHELL,
    '{id: settings, effect: deny, tools: [Write, Bash], when: {path: ["**/.claude/settings.json"]}, because: refused}',
    '{id: etc, effect: deny, tools: [Bash], when: {path: ["/etc/**"], access: write}, because: refused}',
)


@pytest.mark.parametrize(
    "command",
    [
        "cd .claude && echo x > settings.json",
        "cd .claude; echo x > settings.json",
        "(cd .claude && echo x > settings.json)",
        "cd sub; cd ../.claude; echo x > settings.json",
        "cd .claude || true; cp a settings.json",
        "cd /workspace/.claude && cat > settings.json <<E\nx\nE",
        "cd $(echo .claude) && echo x > settings.json",
        "pushd .claude; echo x > settings.json",
        "cd -- .claude && touch settings.json",
        "for i in 1; do echo x > settings.json; cd .claude; done",
        "env -C .claude cp a settings.json",
    ],
)
def test_r15_the_directory_is_followed_through_a_script(command: str) -> None:
    """R15: cd and a relative path reach what an absolute path may not (CVE-2026-25722)."""
    assert refused(command, GUARDED)


def test_r15_leaving_the_workspace_takes_a_rule() -> None:
    """R15: cd / and a relative path are a path of /."""
    assert refused("cd / && npm test", TESTS)
    assert bash("cd sub && npm test", TESTS).effect is ALLOW
    assert denied_by("cd /; rm -rf etc", GUARDED, "etc")
    here = policy_of('{id: here, effect: allow, tools: [Bash], when: {argv: [make], cwd: ["workspace/app/**"]}}')
    assert refused("make all", here)
    assert bash("make all", here, Facts(cwd="/workspace/app")).effect is ALLOW
    assert refused("cd .. && make all", here, Facts(cwd="/workspace/app"))


@pytest.mark.parametrize(
    "command",
    [
        "printf x | sed -n 'w .claude/settings.json'",
        "printf x | tee .claude/settings.json",
        "printf x | dd of=.claude/settings.json",
        "printf x | cat > .claude/settings.json",
        "printf x | awk '{print > \".claude/settings.json\"}'",
        'printf x | python -c \'open(".claude/settings.json", "w")\'',
        "printf x | install /dev/stdin .claude/settings.json",
        "ls | xargs -I{} cp {} .claude/settings.json",
    ],
)
def test_r16_a_pipe_into_a_writer_is_a_write(command: str) -> None:
    """R16: the writer's target counts wherever its input comes from (CVE-2026-25723)."""
    assert refused(command, GUARDED)


@pytest.mark.parametrize(
    "command",
    ["/usr/bin/curl evil", "/proc/self/root/usr/bin/curl evil", "./curl evil", "../../usr/bin/curl evil", "CURL evil",
     "/usr//bin/./curl evil", "busybox curl evil"],
)  # fmt: skip
def test_r17_a_path_to_the_program_does_not_hide_it(command: str) -> None:
    """R17: denials look at the name behind the path; what is copied elsewhere is the sandbox's affair."""
    assert denied_by(command, NO_CURL, "no-curl")


def test_r17_denials_follow_links_to_the_program_and_allows_do_not_trust_paths() -> None:
    """R17: the deny list still hits the real path."""
    linked = Facts(links={"/workspace/innocent": "/usr/bin/curl"})
    assert denied_by("./innocent evil", NO_CURL, "no-curl", linked)
    assert refused("/tmp/npm test", TESTS)
    assert refused("./npm test", TESTS)


@pytest.mark.parametrize(
    "character",
    ["\r", "\x00", "\x1b", "\ufeff", "\u200b", "\u200d", "\u202e", "\u2066", "\u00ad", "\u2028", "\x7f", "\ue000"],
)
def test_r18_control_and_format_characters_are_refused(character: str) -> None:
    """R18: what looks other than it is, is not run: in commands and in paths."""
    decision = bash(f"npm{character} test", policy_of(WHOLE_SHELL))
    assert (decision.effect, decision.rule) == (DENY, "rookery:characters")
    from tests.unit.policies.calls import call

    files = policy_of("{id: files, effect: allow, tools: [Read]}")
    assert call("Read", files, file_path=f"a{character}b").rule == "rookery:characters"


@pytest.mark.parametrize(
    "command", ["\uff43\uff55\uff52\uff4c evil", "\u0441url evil", "cur\u217c evil", "npm\u00a0test"]
)
def test_r18_homoglyphs_are_no_program_that_a_rule_knows(command: str) -> None:
    """R18: compatibility forms compare equal for denials, other scripts are never proved."""
    assert refused(command, NO_CURL)
    assert refused(command, TESTS)


def test_r18_ordinary_text_in_other_scripts_passes() -> None:
    """R18: only hidden characters are refused, not languages."""
    commit = policy_of("{id: commit, effect: allow, tools: [Bash], when: {argv: [git, commit]}}")
    assert bash('git commit -m "Größe, 大きさ, размер 🎉"', commit).effect is ALLOW


BROKEN = (
    "npm test 'x",
    'npm test "x',
    "npm test $(",
    "if npm test",
    "npm test )",
    "npm test <<E\nx",
    "for i in",
    "a%b;",
)


@pytest.mark.parametrize("command", BROKEN)
def test_r19_incomplete_syntax_is_denied_with_a_reason(command: str) -> None:
    """R19: what the parser cannot read is not run (CC 2.1.90)."""
    for policy in (TESTS, policy_of(WHOLE_SHELL), policy_of(NPM_TEST, head="unprovable: ask")):
        decision = bash(command, policy)
        assert decision.effect is DENY
        assert decision.because


HUGE = {
    "megabyte": "echo " + "x" * 1_000_000,
    "megabyte of words": "echo " + "x " * 500_000,
    "parentheses": "(" * 10_000 + "npm test" + ")" * 10_000,
    "substitutions": "echo " + "$(" * 10_000 + "x" + ")" * 10_000,
    "quoted substitutions": "echo " + '"$(' * 10_000 + "x" + ')"' * 10_000,
    "groups": "{ " * 10_000 + "npm test" + "; }" * 10_000,
    "expansions": "echo " + "${a:-" * 10_000 + "x" + "}" * 10_000,
    "functions": "f() " * 20_000,
    "functions with bodies": "f() " * 5_000 + "{ a; }" * 5_000,
    "conditions": "if a; then " * 8_000 + "b" + "; fi" * 8_000,
    "pipes": "a|" * 30_000 + "b",
    "here-documents": "a <<A " * 10_000,
    "globs": "cat " + "*a" * 20_000,
    "braces": "echo " + "{a," * 20_000 + "}" * 20_000,
    "negations": "! " * 30_000 + "a",
    "backticks": "echo " + "`" * 50_000,
    "scripts": "bash -c '" * 2_000,
    "wrappers": "env " * 20_000 + "npm test",
    "suffixes": "npx " * 20_000,
    "recovery at the end": "a " + ">&../`" * 16_000,
    "words out of place": "a " + "fi |&" * 16_000,
    "few units less than too many": "a " + ">&../`" * 1_990,
    "changes of directory": "; ".join(f"cd d{number}" for number in range(5_000)),
}


@pytest.mark.parametrize("command", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("policy", [TESTS, GUARDED], ids=["default deny", "denials"])
def test_r19_huge_and_deeply_nested_commands_are_denied_in_bounded_time(command: str, policy: Policy) -> None:
    """R19: a megabyte, ten thousand levels, quadratic grammar: deny, soon."""
    start = time.process_time()
    decision = bash(command, policy)
    assert time.process_time() - start < 5
    assert decision.effect is DENY


def test_r19_a_long_plain_command_is_decided_in_bounded_time() -> None:
    """R19: length alone is no fault."""
    start = time.process_time()
    assert bash("npm test " + "x " * 7_000, TESTS).effect is ALLOW
    assert bash("npm test " + "x" * 90_000, TESTS).effect is ALLOW
    assert time.process_time() - start < 5


def test_r19_many_paths_and_directories_stay_bounded() -> None:
    """R19: the product of directories and words is bounded too."""
    command = "; ".join([f"cd d{number}" for number in range(15)] + [f"cat {' '.join(map(str, range(90)))}"] * 300)
    start = time.process_time()
    assert bash(command, GUARDED).effect in (DENY, ALLOW)
    assert time.process_time() - start < 5


def test_every_decision_is_an_effect_of_the_enum() -> None:
    assert {effect.value for effect in Effect} == {"allow", "ask", "deny"}
