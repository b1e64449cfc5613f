"""The rows of checkpoints. Their trees lie elsewhere; a row names one by its digest."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, delete, func, insert, select

from server.errors import ErrorCode, RookeryError
from server.models import CheckpointRecord
from server.store.room import Room, columns, execute, record
from server.store.tables import checkpoints, sessions, turns

_TIME, _ID = checkpoints.c.created_at, checkpoints.c.id


class Checkpoints(Room):
    """The points to which sessions can return."""

    async def add_checkpoint(self, checkpoint: CheckpointRecord) -> None:
        """Write a checkpoint, whose tree must be complete by now."""
        query = insert(checkpoints).values(columns(checkpoint))
        await self._database.write(execute, query)
        self._changed(checkpoint.session_id)

    async def checkpoint(self, principal: str, checkpoint_id: str) -> CheckpointRecord:
        """One of the principal's checkpoints.

        Raises:
            RookeryError: ``checkpoint_not_found``.
        """
        query = select(checkpoints).where(checkpoints.c.id == checkpoint_id, checkpoints.c.principal == principal)

        def body(connection: Connection) -> CheckpointRecord:
            row = connection.execute(query).first()
            if row is None:
                raise RookeryError(
                    ErrorCode.CHECKPOINT_NOT_FOUND, "There is no such checkpoint. get_session lists a session's."
                )
            return record(CheckpointRecord, row)

        return await self._database.read(body)

    async def checkpoints(self, session_id: str) -> list[CheckpointRecord]:
        """All checkpoints of a session, oldest first."""
        query = select(checkpoints).where(checkpoints.c.session_id == session_id)
        query = query.order_by(checkpoints.c.created_at, checkpoints.c.id)
        return await self._database.read(
            lambda connection: [record(CheckpointRecord, row) for row in connection.execute(query)]
        )

    async def delete_checkpoints(self, checkpoint_ids: Collection[str]) -> None:
        """Forget checkpoints; ids that do not exist are passed over."""
        ids = sorted(checkpoint_ids)

        def body(connection: Connection) -> None:
            for start in range(0, len(ids), 500):
                connection.execute(delete(checkpoints).where(checkpoints.c.id.in_(ids[start : start + 500])))

        await self._database.write(body)

    async def surplus_checkpoints(self, keep: int) -> list[str]:
        """Ids of checkpoints beyond the latest ``keep`` of their session, which nothing hangs on.

        A session's first checkpoint, the one at the start of its present turn, and those that it was forked from stay.
        """
        place = func.row_number()
        ranked = select(
            checkpoints.c.id,
            checkpoints.c.session_id,
            place.over(partition_by=checkpoints.c.session_id, order_by=[_TIME.desc(), _ID.desc()]).label("latest"),
            place.over(partition_by=checkpoints.c.session_id, order_by=[_TIME, _ID]).label("first"),
        ).subquery()
        forked = select(sessions.c.forked_from).where(sessions.c.forked_from.is_not(None))
        present = (
            select(turns.c.checkpoint_id)
            .join(sessions, (sessions.c.id == turns.c.session_id) & (sessions.c.turn == turns.c.number))
            .where(turns.c.checkpoint_id.is_not(None))
        )
        query = select(ranked.c.id).where(
            ranked.c.latest > keep, ranked.c.first > 1, ranked.c.id.not_in(forked), ranked.c.id.not_in(present)
        )
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def trees_in_use(self) -> set[str]:
        """Digests of all trees that a checkpoint of any session still names, for the collector of the rest."""
        query = select(checkpoints.c.tree).distinct()
        return await self._database.read(lambda connection: set(connection.execute(query).scalars()))
