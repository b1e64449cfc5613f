"""The CLI's own transcripts, mirrored entry by entry, and cut and copied for rewinds and forks.

One session has a main transcript and any number of subagent transcripts, told apart by their ``subpath``. A *length*
counts the entries of all of them in the order in which they arrived: a checkpoint that records one number can cut
main and subagent transcripts at the same moment. What comes in was written in the sandbox, so it is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Select, func, insert, not_, select, update

from server.errors import ErrorCode, RookeryError
from server.store.columns import dump_json
from server.store.database import Database
from server.store.room import Room, not_found
from server.store.tables import counters, transcript_entries

if TYPE_CHECKING:
    from claude_agent_sdk.types import SessionKey, SessionListSubkeysKey, SessionStoreEntry

MAX_ENTRY_BYTES: Final = 16 * 1024 * 1024
"""Largest entry, as ASCII JSON. One line of the CLI's transcript holds at most one message with its images."""

MAX_TRANSCRIPT_BYTES: Final = 512 * 1024 * 1024
"""Largest sum of all entries of a session: a sandbox must not fill the disk of the host."""

MAX_SUBPATHS: Final = 10_000
"""Subagent transcripts of one session."""

MAX_UUID_LENGTH: Final = 200

_SUBPATH: Final = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}/){0,7}[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
"""Becomes a file name when a session wakes: no absolute path, no empty, hidden or parent component."""

_MAIN: Final = ""

_BATCH: Final = 500
"""Entries that are looked up or copied at once."""

Cuts = Sequence[tuple[int, int]]
"""Entries (first, last, both included) that a conversation rewind took out. They stay in the store, so that the
rewind can be undone; a checkpoint records the cuts that there were."""


class Transcripts(Room):
    """The mirrored transcripts of sessions."""

    def transcript_store(self, session_id: str) -> SessionTranscript:
        """The SDK's session store for this one session."""
        return SessionTranscript(self._database, session_id)

    async def transcript_length(self, session_id: str) -> int:
        """Entries of the main and all subagent transcripts together: the number that a checkpoint records."""
        query = select(counters.c.transcript_length).where(counters.c.session_id == session_id)
        return await self._database.read(lambda connection: connection.execute(query).scalar() or 0)

    async def transcript_prefix(
        self, session_id: str, length: int | None = None, *, subpath: str | None = None, cuts: Cuts = ()
    ) -> list[dict[str, Any]]:
        """The entries of one transcript, as they were when the session had ``length`` entries in all.

        Args:
            session_id: the session.
            length: what :meth:`transcript_length` said at that time; None for the whole transcript.
            subpath: a subagent transcript of :meth:`transcript_subpaths`; None for the main one.
            cuts: entries to leave out, as the session or a checkpoint records them.
        """
        return await self._database.read(_load, session_id, subpath or _MAIN, length, cuts)

    async def transcript_subpaths(self, session_id: str, length: int | None = None) -> list[str]:
        """The subagent transcripts that existed at that length, sorted."""
        return await self._database.read(_subpaths, session_id, length)

    async def subagent_transcripts(
        self, session_id: str, length: int | None = None, *, cuts: Cuts = ()
    ) -> dict[str, list[dict[str, Any]]]:
        """All subagent transcripts by subpath, as they were at that length, without the cuts."""

        def body(connection: Connection) -> dict[str, list[dict[str, Any]]]:
            subpaths = _subpaths(connection, session_id, length)
            loaded = {subpath: _load(connection, session_id, subpath, length, cuts) for subpath in subpaths}
            return {subpath: entries for subpath, entries in loaded.items() if entries}

        return await self._database.read(body)

    async def copy_transcript(
        self, from_session_id: str, to_session_id: str, length: int | None = None, *, cuts: Cuts = ()
    ) -> None:
        """Give a session without a transcript the first ``length`` entries of another one's, for a fork.

        Entries within the cuts are left out, and the ids of the one session become those of the other.

        Raises:
            RookeryError: ``session_not_found``; ``invalid_argument`` when the target has entries already.
        """
        await self._database.write(_copy, from_session_id, to_session_id, length, cuts)
        self._changed(to_session_id)


class SessionTranscript:
    """The SDK's ``SessionStore`` for one session, and for no other.

    Keys come from the sandbox: one that names another session is refused, whatever the sandbox says. The key's
    ``project_key`` is not looked at, for a session has one project, its workspace. Nothing can be deleted through it.
    """

    def __init__(self, database: Database, session_id: str) -> None:
        self._database = database
        self._session_id = session_id

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        """Append entries in their order; one whose ``uuid`` this transcript holds already is skipped.

        Raises:
            RookeryError: ``invalid_argument`` for a foreign key or entries out of bounds, ``session_not_found``,
                ``storage_unavailable``.
        """
        subpath = self._subpath(key)
        rows = [_checked(entry) for entry in entries]
        if rows:
            await self._database.write(_append, self._session_id, subpath, rows)

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        """All entries of one transcript, None when there are none.

        Raises:
            RookeryError: ``invalid_argument`` for a foreign key, ``storage_unavailable``.
        """
        loaded = await self._database.read(_load, self._session_id, self._subpath(key), None, ())
        return loaded or None  # type: ignore[return-value]  # entries are opaque JSON objects, which were checked

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        """The subagent transcripts, sorted.

        Raises:
            RookeryError: ``invalid_argument`` for a foreign key, ``storage_unavailable``.
        """
        self._subpath(key)
        return await self._database.read(_subpaths, self._session_id, None)

    def _subpath(self, key: SessionKey | SessionListSubkeysKey) -> str:
        if key.get("session_id") != self._session_id:
            raise _refused("the key names another session")
        if "subpath" not in key:
            return _MAIN
        subpath: object = key.get("subpath")
        if not isinstance(subpath, str) or not _SUBPATH.fullmatch(subpath):
            raise _refused("the key's subpath is malformed")
        return subpath


def _refused(reason: str) -> RookeryError:
    return RookeryError(ErrorCode.INVALID_ARGUMENT, f"The transcript was refused: {reason}.")


def _checked(entry: object) -> dict[str, Any]:
    """The row of an entry from the sandbox, still without its place."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise _refused("an entry is no object with a type")
    uuid = entry.get("uuid")
    if uuid is not None and not (isinstance(uuid, str) and 0 < len(uuid) <= MAX_UUID_LENGTH):
        raise _refused("an entry's uuid is no short text")
    # One without may come again, when another server takes the agent over: it is known by where it stood.
    uuid = uuid or getattr(entry, "place", None)
    try:
        text = dump_json(entry)
    except ValueError as error:
        raise _refused("an entry is no storable JSON") from error
    if len(text) > MAX_ENTRY_BYTES:
        raise _refused(f"an entry is larger than {MAX_ENTRY_BYTES:,} bytes")
    return {"uuid": uuid, "size": len(text), "entry": text}


def _append(connection: Connection, session_id: str, subpath: str, rows: list[dict[str, Any]]) -> None:
    where = counters.c.session_id == session_id
    counter = connection.execute(select(counters).where(where).with_for_update()).first()
    if counter is None:
        raise not_found()
    fresh = _without_known(connection, session_id, subpath, rows)
    if not fresh:
        return
    size = counter.transcript_bytes + sum(row["size"] for row in fresh)
    if size > MAX_TRANSCRIPT_BYTES:
        raise _refused(f"the session's transcripts are larger than {MAX_TRANSCRIPT_BYTES:,} bytes")
    if subpath != _MAIN:
        known = _subpaths(connection, session_id, None)
        if subpath not in known and len(known) >= MAX_SUBPATHS:
            raise _refused(f"the session has more than {MAX_SUBPATHS:,} subagent transcripts")
    for position, row in enumerate(fresh, start=counter.transcript_length + 1):
        row.update(session_id=session_id, subpath=subpath, position=position)
    connection.execute(insert(transcript_entries), fresh)
    length = counter.transcript_length + len(fresh)
    connection.execute(update(counters).where(where).values(transcript_length=length, transcript_bytes=size))


def _without_known(
    connection: Connection, session_id: str, subpath: str, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The rows whose uuid is neither stored nor among those before it. Rows without uuid are always new."""
    uuids = [row["uuid"] for row in rows if row["uuid"] is not None]
    seen: set[str] = set()
    for start in range(0, len(uuids), _BATCH):
        query = select(transcript_entries.c.uuid).where(
            transcript_entries.c.session_id == session_id,
            transcript_entries.c.subpath == subpath,
            transcript_entries.c.uuid.in_(uuids[start : start + _BATCH]),
        )
        seen.update(connection.execute(query).scalars())
    fresh = []
    for row in rows:
        uuid = row["uuid"]
        if uuid is None or uuid not in seen:
            fresh.append(dict(row))
        if uuid is not None:
            seen.add(uuid)
    return fresh


def _within(query: Select[Any], length: int | None, cuts: Cuts) -> Select[Any]:
    position = transcript_entries.c.position
    if length is not None:
        query = query.where(position <= length)
    for first, last in cuts:
        query = query.where(not_(position.between(first, last)))
    return query


def _load(
    connection: Connection, session_id: str, subpath: str, length: int | None, cuts: Cuts
) -> list[dict[str, Any]]:
    query = select(transcript_entries.c.entry).where(
        transcript_entries.c.session_id == session_id, transcript_entries.c.subpath == subpath
    )
    query = _within(query, length, cuts)
    return [json.loads(text) for text in connection.execute(query.order_by(transcript_entries.c.position)).scalars()]


def _subpaths(connection: Connection, session_id: str, length: int | None) -> list[str]:
    query = select(transcript_entries.c.subpath).where(
        transcript_entries.c.session_id == session_id, transcript_entries.c.subpath != _MAIN
    )
    if length is not None:
        query = query.where(transcript_entries.c.position <= length)
    return sorted(connection.execute(query.distinct()).scalars())


def _copy(connection: Connection, from_session_id: str, to_session_id: str, length: int | None, cuts: Cuts) -> None:
    locked = connection.execute(
        select(counters)
        .where(counters.c.session_id.in_([from_session_id, to_session_id]))
        .order_by(counters.c.session_id)
        .with_for_update()
    ).all()
    found = {row.session_id: row for row in locked}
    if len(found) != 2:
        raise not_found()
    if found[to_session_id].transcript_length:
        raise RookeryError(ErrorCode.INVALID_ARGUMENT, "The session to copy to has a transcript already.")
    names = ("position", "subpath", "uuid", "entry")
    source = select(*(transcript_entries.c[name] for name in names)).where(
        transcript_entries.c.session_id == from_session_id
    )
    source = _within(source, length, cuts).order_by(transcript_entries.c.position).limit(_BATCH)
    copied, last = 0, 0
    while rows := connection.execute(source.where(transcript_entries.c.position > last)).all():
        last = rows[-1].position
        batch = []
        for row in rows:
            copied += 1
            # The CLI looks for its own session's id in the entries that it resumes from.
            entry = row.entry.replace(from_session_id, to_session_id)
            place = {"session_id": to_session_id, "position": copied, "subpath": row.subpath}
            batch.append({**place, "uuid": row.uuid, "size": len(entry), "entry": entry})
        connection.execute(insert(transcript_entries), batch)
    _count(connection, to_session_id, copied)


def _count(connection: Connection, session_id: str, length: int) -> None:
    size = select(func.coalesce(func.sum(transcript_entries.c.size), 0)).where(
        transcript_entries.c.session_id == session_id
    )
    connection.execute(
        update(counters)
        .where(counters.c.session_id == session_id)
        .values(transcript_length=length, transcript_bytes=size.scalar_subquery())
    )
