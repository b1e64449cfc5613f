"""Mirrored transcripts: of one session only, checked, and cut at one moment over main and subagent transcripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from server.errors import RookeryError
from server.store import Store, open_store, transcripts
from server.store.transcripts import SessionTranscript
from tests.unit.store.records import started

SUBAGENT = "subagents/agent-1"


def key(session_id: str = "s1", **fields: Any) -> Any:
    return {"project_key": "-workspace", "session_id": session_id, **fields}


def entries(*uuids: str) -> Any:
    return [{"type": "user", "uuid": uuid} for uuid in uuids]


def uuids(loaded: Sequence[Any] | None) -> list[str]:
    return [entry["uuid"] for entry in loaded or []]


@pytest.fixture
async def transcript(store: Store) -> SessionTranscript:
    await started(store, "s1")
    return store.transcript_store("s1")


async def test_what_is_appended_is_loaded_in_order_and_unchanged(store: Store, transcript: SessionTranscript) -> None:
    odd: Any = [{"type": "x", "deep": {"a": [1, None, "\0\ud800Ω"]}, "n": 2**70}, {"type": "x"}, {"type": "x"}]

    await transcript.append(key(project_key="-home-someone"), odd[:1])
    await transcript.append(key(), odd[1:])

    assert await transcript.load(key()) == odd
    assert await store.transcript_prefix("s1") == odd
    assert await store.transcript_length("s1") == 3


async def test_an_entry_with_a_known_uuid_is_skipped_in_its_own_transcript(
    store: Store, transcript: SessionTranscript
) -> None:
    await transcript.append(key(), entries("a", "b", "a"))
    await transcript.append(key(), entries("b", "c"))
    await transcript.append(key(subpath=SUBAGENT), entries("a"))
    await transcript.append(key(), [])

    assert uuids(await transcript.load(key())) == ["a", "b", "c"]
    assert uuids(await transcript.load(key(subpath=SUBAGENT))) == ["a"]
    assert await store.transcript_length("s1") == 4


async def test_retried_batches_under_race_are_kept_once(url: str) -> None:
    async with open_store(url) as one, open_store(url) as two:
        await started(one, "s1")
        async with anyio.create_task_group() as tasks:
            for store in (one, two) * 3:
                tasks.start_soon(store.transcript_store("s1").append, key(), entries(*"abcdefgh"))

        assert uuids(await one.transcript_prefix("s1")) == list("abcdefgh")


@pytest.mark.parametrize(
    "foreign",
    [
        key("s2"),
        key(""),
        {"project_key": "-workspace"},
        key(subpath=""),
        key(subpath=None),
        key(subpath="../../etc/passwd"),
        key(subpath="/etc/passwd"),
        key(subpath="a/./b"),
        key(subpath=".hidden"),
        key(subpath="a//b"),
        key(subpath="a\0b"),
        key(subpath="a\n"),
        key(subpath="x" * 129),
        key(subpath=7),
    ],
)
async def test_a_key_of_another_session_or_place_is_refused(
    store: Store, transcript: SessionTranscript, foreign: Any
) -> None:
    await started(store, "s2")

    with pytest.raises(RookeryError, match="invalid_argument"):
        await transcript.append(foreign, entries("a"))
    with pytest.raises(RookeryError, match="invalid_argument"):
        await transcript.load(foreign)

    assert await store.transcript_length("s1") == await store.transcript_length("s2") == 0


async def test_subkeys_of_another_session_are_not_listed(transcript: SessionTranscript) -> None:
    with pytest.raises(RookeryError, match="invalid_argument"):
        await transcript.list_subkeys(key("s2"))


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        None,
        [],
        {},
        {"type": 7},
        {"type": "x", "uuid": 7},
        {"type": "x", "uuid": ""},
        {"type": "x", "uuid": "u" * 201},
        {"type": "x", "data": b"bytes"},
    ],
)
async def test_an_entry_of_a_wrong_shape_is_refused_with_its_batch(transcript: SessionTranscript, entry: Any) -> None:
    with pytest.raises(RookeryError, match="invalid_argument"):
        await transcript.append(key(), [*entries("a"), entry])

    assert await transcript.load(key()) is None


async def test_what_a_sandbox_can_write_is_bounded(
    store: Store, transcript: SessionTranscript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "MAX_ENTRY_BYTES", 1000)
    monkeypatch.setattr(transcripts, "MAX_TRANSCRIPT_BYTES", 3000)
    monkeypatch.setattr(transcripts, "MAX_SUBPATHS", 2)
    large: Any = {"type": "x", "text": "t" * 900}
    larger: Any = {"type": "x", "text": "t" * 1000}

    with pytest.raises(RookeryError, match="larger than 1,000 bytes"):
        await transcript.append(key(), [larger])
    await transcript.append(key(), [large, large])
    with pytest.raises(RookeryError, match="larger than 3,000 bytes"):
        await transcript.append(key(), [large, large])
    for number in range(2):
        await transcript.append(key(subpath=f"subagents/agent-{number}"), entries("a"))
    with pytest.raises(RookeryError, match="more than 2 subagent transcripts"):
        await transcript.append(key(subpath=SUBAGENT + "9"), entries("a"))

    assert await store.transcript_length("s1") == 4


async def test_a_transcript_of_a_session_that_is_gone_takes_nothing(store: Store) -> None:
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.transcript_store("s1").append(key(), entries("a"))


async def played(transcript: SessionTranscript, store: Store) -> int:
    """Two turns, each with words of a subagent; the length between them is returned."""
    await transcript.append(key(), entries("m1"))
    await transcript.append(key(subpath=SUBAGENT), entries("a1"))
    await transcript.append(key(), entries("m2"))
    between = await store.transcript_length("s1")
    await transcript.append(key(), entries("m3"))
    await transcript.append(key(subpath=SUBAGENT), entries("a2"))
    await transcript.append(key(subpath="subagents/agent-2"), entries("b1"))
    return between


async def test_one_length_shows_all_transcripts_as_they_were(store: Store, transcript: SessionTranscript) -> None:
    between = await played(transcript, store)

    assert uuids(await store.transcript_prefix("s1", between)) == ["m1", "m2"]
    assert uuids(await store.transcript_prefix("s1", between, subpath=SUBAGENT)) == ["a1"]
    assert await store.transcript_subpaths("s1", between) == [SUBAGENT]
    assert await store.subagent_transcripts("s1", between) == {SUBAGENT: entries("a1")}
    assert await store.transcript_subpaths("s1") == [SUBAGENT, "subagents/agent-2"]
    assert await store.transcript_prefix("s1", 0) == []


async def test_cuts_leave_entries_out_of_all_transcripts_and_lose_none(
    store: Store, transcript: SessionTranscript
) -> None:
    between = await played(transcript, store)
    await transcript.append(key(), entries("m4"))
    cuts = ((2, between), (between + 2, between + 3))

    assert uuids(await store.transcript_prefix("s1", cuts=cuts)) == ["m1", "m3", "m4"]
    assert uuids(await store.transcript_prefix("s1", between, cuts=cuts)) == ["m1"]
    assert await store.subagent_transcripts("s1", cuts=cuts) == {}
    assert await store.subagent_transcripts("s1", cuts=[(1, between)]) == {
        SUBAGENT: entries("a2"),
        "subagents/agent-2": entries("b1"),
    }
    assert uuids(await transcript.load(key())) == ["m1", "m2", "m3", "m4"]


async def test_a_fork_starts_with_the_prefix_and_goes_its_own_way(store: Store, transcript: SessionTranscript) -> None:
    between = await played(transcript, store)
    for name in ("fork", "twin", "cut"):
        await started(store, name)

    await store.copy_transcript("s1", "fork", between)
    await store.copy_transcript("s1", "twin")
    await store.copy_transcript("s1", "cut", cuts=[(2, between)])
    await store.transcript_store("fork").append(key("fork"), entries("f1"))

    assert uuids(await store.transcript_prefix("fork")) == ["m1", "m2", "f1"]
    assert await store.subagent_transcripts("fork") == {SUBAGENT: entries("a1")}
    assert await store.transcript_length("fork") == between + 1
    assert await store.transcript_prefix("twin") == await store.transcript_prefix("s1")
    assert await store.subagent_transcripts("twin") == await store.subagent_transcripts("s1")
    # Without gaps, so that a checkpoint of the fork can say a length again.
    assert uuids(await store.transcript_prefix("cut", 2)) == ["m1", "m3"]
    assert await store.transcript_length("cut") == 4
    assert uuids(await transcript.load(key())) == ["m1", "m2", "m3"]
    with pytest.raises(RookeryError, match="invalid_argument"):
        await store.copy_transcript("s1", "fork", between)
    with pytest.raises(RookeryError, match="session_not_found"):
        await store.copy_transcript("s1", "missing", between)


async def test_a_long_transcript_is_copied_whole_under_the_forks_own_id(
    store: Store, transcript: SessionTranscript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcripts, "_BATCH", 3)
    written: Any = [{"type": "user", "uuid": f"u{number}", "sessionId": "s1"} for number in range(10)]
    await transcript.append(key(), written)
    await transcript.append(key(), written)
    await started(store, "f1")

    await store.copy_transcript("s1", "f1", 9)

    assert await store.transcript_prefix("f1") == [{**entry, "sessionId": "f1"} for entry in written[:9]]
