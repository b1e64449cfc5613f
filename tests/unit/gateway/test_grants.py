"""Grants: who may use the model, and until when."""

from __future__ import annotations

import anyio
import pytest

from server.clock import SYSTEM_CLOCK
from server.gateway.grants import GrantTable


def test_a_grant_is_found_by_its_token_only_while_it_lives() -> None:
    table = GrantTable(SYSTEM_CLOCK)
    grant = table.open()
    token = grant.token
    assert table.find(token) is grant
    assert table.find(token + "x") is None
    grant.revoke()
    assert table.find(token) is None
    grant.revoke()


def test_the_table_keeps_no_token_and_no_text_shows_one() -> None:
    """Row X07: hashed at rest."""
    table = GrantTable(SYSTEM_CLOCK)
    grant = table.open()
    assert grant.token not in repr(grant)
    assert grant.token not in repr(table.__dict__)
    assert grant.token.encode() not in b"".join(table._grants)


def test_a_grant_is_bound_once() -> None:
    grant = GrantTable(SYSTEM_CLOCK).open()
    grant.bind(session_id="a", root_id="a", principal="me")
    grant.bind(session_id="a", root_id="a", principal="me")
    with pytest.raises(ValueError, match="another session"):
        grant.bind(session_id="b", root_id="a", principal="me")


async def test_quiet_waits_until_the_last_request_is_settled() -> None:
    grant = GrantTable(SYSTEM_CLOCK).open()
    await grant.quiet()
    scope = anyio.CancelScope()
    grant.enter(scope)
    done = anyio.Event()

    async def wait() -> None:
        await grant.quiet()
        done.set()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert not done.is_set()
            grant.leave(scope)
            await done.wait()


async def test_revoking_cancels_what_runs() -> None:
    grant = GrantTable(SYSTEM_CLOCK).open()
    scope = anyio.CancelScope()
    grant.enter(scope)
    grant.revoke()
    assert scope.cancel_called
