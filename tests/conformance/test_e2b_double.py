"""The real SDK, unmodified, against the double of E2B: each test is a promise that the provider leans on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from e2b import AsyncSandbox, AsyncTemplate, CommandExitException, SandboxQuery, TimeoutException
from e2b.exceptions import (
    BuildException,
    FileNotFoundException,
    InvalidArgumentException,
    NotFoundException,
    RateLimitException,
    SandboxNotFoundException,
    SandboxNotRunningException,
)

from tests.e2b_cloud.handle import E2BCloud

PATIENCE_S = 30.0

pytestmark = pytest.mark.e2b


@pytest.fixture
async def box(e2b_cloud: E2BCloud) -> AsyncIterator[AsyncSandbox]:
    """A new sandbox, killed at the end."""
    sandbox = await e2b_cloud.sdk().AsyncSandbox.create(metadata={"test": "yes"})
    yield sandbox
    await sandbox.kill()


async def until(condition: Any) -> None:
    """Wait for something that takes milliseconds."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            await anyio.sleep(0.01)


class Heard:
    """Collects what a command says."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text += text

    async def until(self, wanted: str) -> None:
        """Wait until it said this."""
        await until(lambda: wanted in self.text)


# Commands.


async def test_a_command_gives_its_status_and_both_outputs(box: AsyncSandbox) -> None:
    result = await box.commands.run("echo out; echo err >&2")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")
    with pytest.raises(CommandExitException) as caught:
        await box.commands.run("exit 7")
    assert caught.value.exit_code == 7


async def test_a_command_runs_as_user_at_home_and_as_root_when_asked(box: AsyncSandbox) -> None:
    assert (await box.commands.run("id -un; pwd")).stdout == "user\n/home/user\n"
    assert (await box.commands.run("id -u; pwd", user="root", cwd="/var")).stdout == "0\n/var\n"


@pytest.mark.slow
async def test_a_command_in_a_missing_directory_is_an_invalid_argument(box: AsyncSandbox) -> None:
    with pytest.raises(InvalidArgumentException):
        await box.commands.run("true", cwd="/no/such")


@pytest.mark.slow
async def test_variables_of_sandbox_and_command_are_there_and_none_of_the_double(
    e2b_cloud: E2BCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await e2b_cloud.sdk().AsyncSandbox.create(envs={"OF_SANDBOX": "1"})
    output = (await box.commands.run("env", envs={"OF_COMMAND": "2"})).stdout
    assert "OF_SANDBOX=1" in output
    assert "OF_COMMAND=2" in output
    assert e2b_cloud.api_key not in output
    await box.kill()


async def test_the_default_timeout_kills_a_background_process(box: AsyncSandbox) -> None:
    handle = await box.commands.run("sleep 600", background=True, timeout=0.2)
    with pytest.raises(TimeoutException):
        await handle.wait()
    await until_ended(box, handle.pid)


async def until_ended(box: AsyncSandbox, pid: int) -> None:
    """Wait until a process is not listed any more."""
    with anyio.fail_after(PATIENCE_S):
        while pid in [one.pid for one in await box.commands.list()]:
            await anyio.sleep(0.01)


async def test_output_without_a_subscriber_is_dropped_and_the_process_lives_on(
    e2b_cloud: E2BCloud, box: AsyncSandbox
) -> None:
    handle = await box.commands.run(
        "read a; echo lost; read b; echo heard; read c", background=True, stdin=True, timeout=0
    )
    await handle.disconnect()
    await until_left(box)
    await box.commands.send_stdin(handle.pid, "a\n")
    await until(lambda: e2b_cloud.sandbox(box.sandbox_id)["dropped"] == len("lost\n"))
    heard = Heard()
    again = await box.commands.connect(handle.pid, timeout=0, on_stdout=heard)
    await box.commands.send_stdin(handle.pid, "b\n")
    await heard.until("heard")
    assert "lost" not in heard.text
    await again.kill()


async def until_left(box: AsyncSandbox) -> None:
    """Give a disconnect the time of two round trips."""
    for _ in range(2):
        await box.commands.list()
        await anyio.sleep(0.05)


async def test_a_process_can_be_found_again_and_its_exit_is_kept_for_a_while(box: AsyncSandbox) -> None:
    handle = await box.commands.run("read line; exit 5", background=True, stdin=True, timeout=0)
    await handle.disconnect()
    await box.commands.send_stdin(handle.pid, "go\n")
    await until_ended(box, handle.pid)
    with pytest.raises(CommandExitException) as caught:
        await (await box.commands.connect(handle.pid, timeout=0)).wait()
    assert caught.value.exit_code == 5
    with pytest.raises(NotFoundException):
        await box.commands.connect(99_999, timeout=0)


async def test_kill_reaches_one_process_and_not_its_children(box: AsyncSandbox) -> None:
    heard = Heard()
    handle = await box.commands.run("sleep 600 & echo $!; wait", background=True, timeout=0, on_stdout=heard)
    await heard.until("\n")
    assert await handle.kill()
    assert not await box.commands.kill(99_999)
    assert (await box.commands.run(f"kill -0 {heard.text.strip()} && echo alive")).stdout == "alive\n"


async def test_input_is_a_stream_in_order_whose_end_does_not_close_it(box: AsyncSandbox) -> None:
    heard = Heard()
    handle = await box.commands.run("cat; echo end", background=True, stdin=True, timeout=0, on_stdout=heard)
    pen = box.commands.stream_input(handle.pid, timeout=0)
    for number in range(50):
        await pen.send(f"{number}\n")
    await pen.close()
    await box.commands.send_stdin(handle.pid, "more\n")
    await heard.until("more\n")
    await box.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "".join(f"{number}\n" for number in range(50)) + "more\nend\n"


@pytest.mark.slow
async def test_much_output_arrives_whole(box: AsyncSandbox) -> None:
    result = await box.commands.run("head -c 5000000 /dev/zero | tr '\\0' x")
    assert len(result.stdout) == 5_000_000


@pytest.mark.slow
async def test_a_long_line_of_input_arrives_whole(box: AsyncSandbox) -> None:
    handle = await box.commands.run("head -c 5000000 | tr -d y | wc -c", background=True, stdin=True, timeout=0)
    await box.commands.send_stdin(handle.pid, "y" * 4_999_999 + "x")
    assert (await handle.wait()).stdout == "1\n"


# Files.


async def test_files_are_written_read_listed_moved_and_removed(box: AsyncSandbox) -> None:
    await box.files.write("a/b", b"\x00\xff" * 1000)
    assert bytes(await box.files.read("a/b", format="bytes")) == b"\x00\xff" * 1000
    assert (await box.commands.run("stat -c %U a/b")).stdout == "user\n"
    assert [(one.path, one.size, one.owner) for one in await box.files.list("a")] == [("/home/user/a/b", 2000, "user")]
    await box.files.rename("a/b", "c")
    assert not await box.files.exists("a/b")
    await box.files.remove("c")
    with pytest.raises(FileNotFoundException):
        await box.files.read("c")
    assert await box.files.make_dir("d/e")
    assert not await box.files.make_dir("d/e")


@pytest.mark.slow
async def test_files_pass_as_compressed_streams(box: AsyncSandbox) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield bytes([number]) * 10_000

    await box.files.write("/var/stream", pieces(), user="root", gzip=True)
    assert (await box.commands.run("stat -c '%U %s' /var/stream")).stdout == "root 1000000\n"
    received = b""
    async for piece in await box.files.read("/var/stream", format="stream", gzip=True):
        received += piece
    assert received == b"".join(bytes([number]) * 10_000 for number in range(100))


# Users.


async def test_users_of_a_sandbox_are_really_apart(box: AsyncSandbox) -> None:
    handle = await box.commands.run(
        "exec 3>/var/lib/secret; chmod 600 /var/lib/secret; echo key >&3; TOKEN=canary exec sleep 600",
        background=True,
        timeout=0,
        user="root",
    )
    await until_present(box, "/var/lib/secret")
    for attempt in (
        "cat /var/lib/secret",
        f"cat /proc/{handle.pid}/environ",
        f"ls /proc/{handle.pid}/fd/",
        f"cat /proc/{handle.pid}/mem",
        f"kill {handle.pid}",
        "echo x > /etc/passwd",
        "setpriv --reuid 0 true",
        "unshare --map-root-user mount --bind /home /root",
    ):
        with pytest.raises(CommandExitException):
            await box.commands.run(attempt)
    assert await handle.kill()


async def until_present(box: AsyncSandbox, path: str) -> None:
    """Wait for a file."""
    with anyio.fail_after(PATIENCE_S):
        while not await box.files.exists(path, user="root"):
            await anyio.sleep(0.01)


async def test_root_may_become_any_user_and_add_one(box: AsyncSandbox) -> None:
    script = "useradd --uid 1100 --create-home agent && setpriv --reuid agent --regid agent --clear-groups id -un"
    assert (await box.commands.run(script, user="root")).stdout == "agent\n"
    assert (await box.commands.run("pwd", user="agent")).stdout == "/home/agent\n"


@pytest.mark.slow
async def test_there_is_no_network_and_one_process_namespace(box: AsyncSandbox) -> None:
    with pytest.raises(CommandExitException):
        await box.commands.run("exec 3<>/dev/tcp/1.1.1.1/443")
    handle = await box.commands.run("sleep 600", background=True, timeout=0)
    assert (await box.commands.run(f"kill -0 {handle.pid}")).exit_code == 0


# A life from beginning to end.


@pytest.mark.slow
async def test_a_sandbox_is_listed_by_its_metadata_page_by_page(e2b_cloud: E2BCloud) -> None:
    cloud = e2b_cloud.sdk()
    boxes = [await cloud.AsyncSandbox.create(metadata={"server": "a b&c", "n": str(n)}) for n in range(3)]
    stranger = await e2b_cloud.sdk(e2b_cloud.other_api_key).AsyncSandbox.create(metadata={"server": "a b&c"})
    pages = cloud.AsyncSandbox.list(query=SandboxQuery(metadata={"server": "a b&c"}), limit=2)
    found, count = [], 0
    while pages.has_next:
        found += await pages.next_items()
        count += 1
    assert count == 2
    assert sorted(one.sandbox_id for one in found) == sorted(one.sandbox_id for one in boxes)
    for one in [*boxes, stranger]:
        assert await one.kill()


@pytest.mark.slow
async def test_a_key_creates_one_sandbox_however_often_it_is_sent(e2b_cloud: E2BCloud) -> None:
    cloud = e2b_cloud.sdk()
    first, second = await asyncio.gather(
        *(cloud.AsyncSandbox.create(idempotency_key="rookery-session-1") for _ in range(2))
    )
    assert first.sandbox_id == second.sandbox_id
    assert len(e2b_cloud.sandboxes) == 1
    await first.kill()


async def test_a_paused_sandbox_keeps_its_processes_and_drops_its_streams(
    e2b_cloud: E2BCloud, box: AsyncSandbox
) -> None:
    handle = await box.commands.run("read line; echo $line > note; sleep 600", background=True, stdin=True, timeout=0)
    assert await box.pause()
    assert not await box.pause()
    with pytest.raises(Exception, match=r"(?i)end event|connection|reset|closed|not running|killed"):
        await handle.wait()
    assert not await box.is_running()
    assert e2b_cloud.sandbox(box.sandbox_id)["state"] == "paused"
    with pytest.raises(SandboxNotRunningException):
        await box.commands.run("true")
    await box.connect(timeout=60)
    await box.commands.send_stdin(handle.pid, "kept\n")
    await until_present(box, "/home/user/note")
    assert (await box.commands.run("cat note")).stdout == "kept\n"


@pytest.mark.slow
async def test_a_pause_without_memory_keeps_the_disk_alone(box: AsyncSandbox) -> None:
    handle = await box.commands.run("echo kept > note; sleep 600", background=True, timeout=0)
    await until_present(box, "/home/user/note")
    await box.pause(mode="filesystem")
    await box.connect(timeout=60)
    assert (await box.commands.run("cat note")).stdout == "kept\n"
    assert handle.pid not in [one.pid for one in await box.commands.list()]


@pytest.mark.slow
async def test_time_ends_a_sandbox_or_pauses_it(e2b_cloud: E2BCloud) -> None:
    cloud = e2b_cloud.sdk()
    killed = await cloud.AsyncSandbox.create(timeout=1)
    paused = await cloud.AsyncSandbox.create(timeout=1, lifecycle={"on_timeout": "pause"})
    kept = await cloud.AsyncSandbox.create(timeout=1)
    await kept.set_timeout(60)
    await until(lambda: [one["state"] for one in e2b_cloud.sandboxes].count("paused") == 1)
    await until(lambda: len(e2b_cloud.sandboxes) == 2)
    assert await kept.is_running()
    assert not await killed.is_running()
    for one in (paused, kept):
        await one.kill()


@pytest.mark.slow
async def test_a_fork_has_a_copy_of_the_disk_and_a_snapshot_makes_more(box: AsyncSandbox) -> None:
    await box.commands.run("echo before > note; mkdir -m 700 mine")
    (copy,) = await box.fork()
    assert isinstance(copy, AsyncSandbox)
    await box.commands.run("echo after > note")
    assert (await copy.commands.run("cat note; stat -c '%U %a' mine")).stdout == "before\nuser 700\n"
    snapshot = await box.create_snapshot()
    assert await copy.kill()
    assert snapshot.snapshot_id


async def test_the_network_is_recorded_as_it_was_asked_for(e2b_cloud: E2BCloud) -> None:
    box = await e2b_cloud.sdk().AsyncSandbox.create(
        network={"deny_out": lambda context: [context.all_traffic], "allow_out": ["api.example.com"]}
    )
    network = e2b_cloud.sandbox(box.sandbox_id)["network"]
    assert network == {"allowOut": ["api.example.com"], "denyOut": ["0.0.0.0/0"]}
    await box.update_network({"deny_out": ["0.0.0.0/0"]})
    assert e2b_cloud.sandbox(box.sandbox_id)["network"] == {"denyOut": ["0.0.0.0/0"]}
    await box.kill()


async def test_a_killed_sandbox_is_gone_for_running_commands_and_new_ones(box: AsyncSandbox) -> None:
    handle = await box.commands.run("sleep 600", background=True, timeout=0)
    assert await box.kill()
    assert not await box.kill()
    with pytest.raises(SandboxNotRunningException):
        await handle.wait()
    with pytest.raises(SandboxNotRunningException):
        await box.commands.run("true")
    with pytest.raises(SandboxNotFoundException):
        await box.get_info()


# Faults.


async def test_each_fault_at_creation_is_what_the_cloud_would_show(e2b_cloud: E2BCloud) -> None:
    cloud = e2b_cloud.sdk(retries=0)
    create = "^POST /v2/sandboxes$"
    limited = json.dumps({"code": 429, "message": "too many"})
    e2b_cloud.fault("control", create, "status", status=429, headers={"Retry-After": "0"}, body=limited)
    with pytest.raises(RateLimitException):
        await cloud.AsyncSandbox.create()
    e2b_cloud.fault("control", create, "status", status=500, body="<html>upstream</html>")
    with pytest.raises(json.JSONDecodeError):
        await cloud.AsyncSandbox.create()
    e2b_cloud.fault("control", create, "lost_reply")
    with pytest.raises(Exception, match=r"(?i)error|closed|connection"):
        await cloud.AsyncSandbox.create(idempotency_key="once")
    assert len(e2b_cloud.sandboxes) == 1
    again = await cloud.AsyncSandbox.create(idempotency_key="once")
    assert [one["sandboxID"] for one in e2b_cloud.sandboxes] == [again.sandbox_id]
    assert e2b_cloud.struck() == [1, 1, 1]
    await again.kill()


async def test_a_stream_can_break_off_and_the_process_live_on(e2b_cloud: E2BCloud, box: AsyncSandbox) -> None:
    handle = await box.commands.run("sleep 600", background=True, timeout=0)
    e2b_cloud.drop_streams()
    with pytest.raises(Exception, match=r"(?i)end event|connection|closed|stream"):
        await handle.wait()
    assert handle.pid in [one.pid for one in await box.commands.list()]


async def test_a_disk_can_come_back_in_half(e2b_cloud: E2BCloud, box: AsyncSandbox) -> None:
    await box.commands.run("mkdir w; for n in 1 2 3 4; do echo $n > w/$n; done")
    await box.pause()
    e2b_cloud.switch(half_restored=["/home/user/w"])
    await box.connect(timeout=60)
    assert sorted(e2b_cloud.state["lost"]) == ["/home/user/w/3", "/home/user/w/4"]
    assert (await box.commands.run("cat w/*")).stdout == "1\n2\n"


@pytest.mark.slow
async def test_a_dead_subscriber_can_hold_up_a_process(e2b_cloud: E2BCloud, box: AsyncSandbox) -> None:
    e2b_cloud.switch(wedged_subscribers=True)
    handle = await box.commands.run(
        "read a; head -c 9000000 /dev/zero | tr '\\0' x; echo done > done", background=True, stdin=True, timeout=0
    )
    await handle.disconnect()
    await until_left(box)
    heard = Heard()
    again = await box.commands.connect(handle.pid, timeout=0, on_stdout=heard, retain_output=False)
    await box.commands.send_stdin(handle.pid, "go\n")
    await until(lambda: len(heard.text) > 0)
    await until_left(box)
    assert not await box.files.exists("done")
    await again.kill()


@pytest.mark.slow
async def test_plans_have_limits(e2b_cloud: E2BCloud) -> None:
    cloud = e2b_cloud.sdk(retries=0)
    e2b_cloud.plan(concurrent=1, longest_s=3600)
    with pytest.raises(Exception, match="1 hours"):
        await cloud.AsyncSandbox.create(timeout=7200)
    box = await cloud.AsyncSandbox.create(timeout=60)
    with pytest.raises(RateLimitException):
        await cloud.AsyncSandbox.create(timeout=60)
    await box.kill()


# Templates.


async def test_a_template_is_built_and_sandboxes_begin_as_it(e2b_cloud: E2BCloud, tmp_path: Path) -> None:
    cloud = e2b_cloud.sdk()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "relay.py").write_text("print('relay')")
    template = (
        AsyncTemplate(file_context_path=tmp_path)
        .from_node_image("24")
        .apt_install(["git"])
        .npm_install("@anthropic-ai/claude-code@2.1.332", g=True)
        .copy("parts/relay.py", "/opt/rookery/relay.py", user="root", mode=0o700)
        .copy("parts", "/opt/parts", user="root")
        .run_cmd("useradd --create-home agent && mkdir /workspace && chown agent /workspace", user="root")
        .set_envs({"OF_TEMPLATE": "1"})
        .set_workdir("/workspace")
    )
    log: list[str] = []
    built = await cloud.AsyncTemplate.build(
        template, "rookery:1", cpu_count=1, memory_mb=512, on_build_logs=lambda entry: log.append(entry.message)
    )
    assert await cloud.AsyncTemplate.alias_exists("rookery")
    assert any("relay.py" in line for line in log)
    box = await cloud.AsyncSandbox.create("rookery:1")
    assert (await box.get_info()).template_id == built.template_id
    script = "pwd; echo $OF_TEMPLATE; stat -c '%U %a' /opt/rookery/relay.py; ls /opt/parts; command -v claude"
    said = (await box.commands.run(script)).stdout.splitlines()
    assert said[:-1] == ["/workspace", "1", "root 700", "relay.py"]
    assert said[-1].endswith("/claude")
    await box.kill()
    assert e2b_cloud.sandboxes == []


@pytest.mark.slow
async def test_a_step_that_fails_fails_the_build(e2b_cloud: E2BCloud) -> None:
    template = AsyncTemplate().from_base_image().run_cmd("echo so far; exit 3")
    with pytest.raises(BuildException, match="so far"):
        await e2b_cloud.sdk().AsyncTemplate.build(template, "broken")
    assert e2b_cloud.sandboxes == []
