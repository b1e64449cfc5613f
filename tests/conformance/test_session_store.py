"""The SDK's own harness for session stores, run against the store's transcripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from claude_agent_sdk.testing import run_session_store_conformance
from claude_agent_sdk.types import SessionKey, SessionListSubkeysKey, SessionStore, SessionStoreEntry

from server.store import Store, open_store
from server.store.transcripts import SessionTranscript
from tests.unit.store.records import a_session, a_turn


class TranscriptsByKey:
    """Many sessions' transcripts behind one object, as the harness wants it.

    A session's own store takes no key but its own. The harness works with several, so each (project, session) of its
    keys gets a session of ours here, and every call goes to that session's store.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    async def append(self, key: SessionKey, entries: list[SessionStoreEntry]) -> None:
        session_id = self._session_id(key)
        if not await self._store.last_seq(session_id):
            await self._store.create_session(a_session(session_id), a_turn(session_id))
        await self._own(key).append(self._own_key(key), entries)

    async def load(self, key: SessionKey) -> list[SessionStoreEntry] | None:
        return await self._own(key).load(self._own_key(key))

    async def list_subkeys(self, key: SessionListSubkeysKey) -> list[str]:
        return await self._own(key).list_subkeys({**key, "session_id": self._session_id(key)})

    def _own(self, key: SessionKey | SessionListSubkeysKey) -> SessionTranscript:
        return self._store.transcript_store(self._session_id(key))

    def _own_key(self, key: SessionKey) -> SessionKey:
        return {**key, "session_id": self._session_id(key)}

    def _session_id(self, key: SessionKey | SessionListSubkeysKey) -> str:
        return f"{self._prefix}-{key['project_key']}-{key['session_id']}"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"sqlite:///{tmp_path / 'rookery.db'}") as opened:
        yield opened


async def test_transcripts_keep_the_contract_of_the_sdk(store: Store) -> None:
    made = 0

    def make_store() -> SessionStore:
        nonlocal made
        made += 1
        return cast(SessionStore, TranscriptsByKey(store, f"run{made}"))

    # Listing and deleting belong to the server: nothing that a session is handed can see others or forget.
    await run_session_store_conformance(make_store)

    assert made > 6
    assert not {"list_sessions", "list_session_summaries", "delete"} & set(dir(SessionTranscript))
