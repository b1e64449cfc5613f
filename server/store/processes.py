"""Several server processes on one store: who is there, and commands for a session that another one owns."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Select, delete, func, insert, or_, select, update

from server.models import Command, ServerRecord
from server.store.room import Room, changed_one, execute, not_found, record
from server.store.tables import commands, servers, sessions

RESULT_KEPT: Final = timedelta(hours=1)
"""A command that is older than this has nobody waiting for it any more, and is forgotten."""

_COMMAND: Final = tuple(commands.c[name] for name in Command.model_fields)


class Processes(Room):
    """Servers with their heartbeats, and the inbox through which they ask each other."""

    async def register_server(self, server_id: str, pid: int | None = None, place: str | None = None) -> ServerRecord:
        """Enter a server process, by default this one, alive from now.

        Args:
            place: where its lock can be looked at (:attr:`server.leases.Leases.place`); by default this host.
        """
        row = (server_id, pid or os.getpid(), place or socket.gethostname())
        return await self._database.write(_register, *row, self._now())

    async def heartbeat(self, server_id: str) -> bool:
        """Say that a server is alive; False when its row is gone, because others took it for dead."""
        return await self._database.write(_beat, server_id, self._now())

    async def servers(self) -> list[ServerRecord]:
        """All servers that were entered and not removed, oldest first, with how long each was silent."""
        return await self._database.read(_servers, self._now())

    async def remove_server(self, server_id: str) -> None:
        """Strike a server off. Its sessions keep its name as owner, which then counts as dead."""
        query = delete(servers).where(servers.c.id == server_id)
        await self._database.write(execute, query)

    async def send_command(self, session_id: str, kind: str, payload: dict[str, Any]) -> str:
        """Put a command into the inbox of a session; its id is returned.

        Raises:
            RookeryError: ``session_not_found``.
        """
        command_id = self._clock.identifier("cmd")
        await self._database.write(_send, command_id, session_id, kind, payload, self._now())
        return command_id

    async def take_commands(self, owner: str) -> list[Command]:
        """Take the commands for all sessions of this owner, in the order in which they were sent.

        Each is handed out once to an owner. One that a former owner took and did not finish is handed out again, so
        a command must bear being carried out twice.
        """
        # Most calls find nothing, and then must not wait for the writer.
        if not await self._database.read(lambda connection: connection.execute(_waiting(owner).limit(1)).first()):
            return []
        return await self._database.write(_take, owner, self._now())

    async def finish_command(self, command_id: str, result: dict[str, Any]) -> None:
        """Write the answer for the sender, and forget what the command said."""
        query = update(commands).where(commands.c.id == command_id, commands.c.finished_at.is_(None))
        values = query.values(finished_at=self._now(), result=result, payload={})
        await self._database.write(execute, values)

    async def withdraw_command(self, command_id: str) -> bool:
        """Take a command back; False when its owner took it before, or it is answered."""
        waits = (commands.c.id == command_id, commands.c.taken_by.is_(None), commands.c.finished_at.is_(None))
        query = update(commands).where(*waits).values(finished_at=self._now(), payload={})
        return await self._database.write(changed_one, query)

    async def command_result(self, command_id: str) -> dict[str, Any] | None:
        """The answer to a command; None while there is none."""
        query = select(commands.c.result).where(commands.c.id == command_id)
        found: dict[str, Any] | None = await self._database.read(lambda connection: connection.execute(query).scalar())
        return found


def moment(connection: Connection, at: datetime) -> datetime:
    """Now, by one clock for all hosts that share the database: its own. SQLite is on this host and has no other."""
    if connection.dialect.name == "sqlite":
        return at
    moment: datetime = connection.execute(select(func.now())).scalar_one()
    return moment


def _register(connection: Connection, server_id: str, pid: int, host: str, at: datetime) -> ServerRecord:
    now = moment(connection, at)
    server = ServerRecord(id=server_id, pid=pid, host=host, started_at=now, heartbeat_at=now)
    connection.execute(insert(servers).values(server.model_dump(exclude={"silent_for"})))
    return server


def _beat(connection: Connection, server_id: str, at: datetime) -> bool:
    query = update(servers).where(servers.c.id == server_id).values(heartbeat_at=moment(connection, at))
    return changed_one(connection, query)


def _servers(connection: Connection, at: datetime) -> list[ServerRecord]:
    now = moment(connection, at)
    rows = connection.execute(select(servers).order_by(servers.c.started_at, servers.c.id)).all()
    return [ServerRecord(**row._mapping, silent_for=now - row.heartbeat_at) for row in rows]


def _send(
    connection: Connection, command_id: str, session_id: str, kind: str, payload: dict[str, Any], at: datetime
) -> None:
    if connection.execute(select(sessions.c.id).where(sessions.c.id == session_id)).first() is None:
        raise not_found()
    connection.execute(delete(commands).where(commands.c.created_at < at - RESULT_KEPT))
    connection.execute(
        insert(commands).values(id=command_id, session_id=session_id, kind=kind, payload=payload, created_at=at)
    )


def _waiting(owner: str) -> Select[Any]:
    mine = select(sessions.c.id).where(sessions.c.owner == owner)
    return (
        select(commands.c.number)
        .where(
            commands.c.finished_at.is_(None),
            or_(commands.c.taken_by.is_(None), commands.c.taken_by != owner),
            commands.c.session_id.in_(mine),
        )
        .order_by(commands.c.number)
    )


def _take(connection: Connection, owner: str, at: datetime) -> list[Command]:
    numbers = list(connection.execute(_waiting(owner).with_for_update(of=commands)).scalars())
    connection.execute(update(commands).where(commands.c.number.in_(numbers)).values(taken_by=owner, taken_at=at))
    taken = connection.execute(select(*_COMMAND).where(commands.c.number.in_(numbers)).order_by(commands.c.number))
    return [record(Command, row) for row in taken]
