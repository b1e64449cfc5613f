"""The event stream for programs, over real sockets: no gaps, from any number, for the right reader, bounded."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from rookery.web import events
from rookery.web.events import EventStreams
from server.callers import LOCAL
from server.gateway.scripted import prompt_with
from tests.house import ME, bash, open_house, run
from tests.http import Site, call, serving_http
from tests.surface import ReadyBackend

WORK = prompt_with([*(bash(f"echo {number}") for number in range(8)), {"text": "done"}])


def transcript(site: Site, session_id: str, after: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = call(site, "read_transcript", {"session_id": session_id, "after": after, "limit": 500})
        found.extend(page["events"])
        after = page["cursor"]
        if not page["more"]:
            return found


@contextmanager
def server_sent(site: Site, session_id: str, query: str = "", **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    """The messages of a stream: ``id`` and ``data``, or ``event`` and ``data``."""

    def messages(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
        message: dict[str, Any] = {}
        for line in lines:
            if line.startswith(":"):
                continue
            if not line and message:
                yield {**message, "data": json.loads(message["data"])}
                message = {}
            elif line:
                name, _, value = line.partition(": ")
                message[name] = value

    address = f"{site.root}/v1/sessions/{session_id}/events{query}"
    with (
        httpx2.Client(trust_env=False, timeout=60) as client,
        client.stream("GET", address, headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield messages(response.iter_lines())


def websocket(site: Site, session_id: str, query: str = "", **options: Any) -> ClientConnection:
    address = f"{site.root.replace('http', 'ws', 1)}/v1/sessions/{session_id}/events{query}"
    stream: ClientConnection = connect(address, proxy=None, open_timeout=30, **options)
    return stream


def test_readers_who_come_at_any_time_see_all_events_once_and_in_order(site: Site) -> None:
    session_id = call(site, "spawn_agent", {"prompt": WORK, "wait_s": 0})["session_id"]

    def by_sse() -> list[dict[str, Any]]:
        with server_sent(site, session_id) as stream:
            return list(stream)

    def by_websocket() -> list[dict[str, Any]]:
        with websocket(site, session_id) as stream:
            return [json.loads(message) for message in stream]

    def in_pieces() -> list[dict[str, Any]]:
        """Cut off after every third event, and come back with the last one's number."""
        found: list[dict[str, Any]] = []
        while True:
            last = str(found[-1]["seq"]) if found else ""
            with server_sent(site, session_id, "?after=0", **({"last-event-id": last} if last else {})) as stream:
                for _ in range(3):
                    message = next(stream)
                    if message.get("event") == "end":
                        return found
                    assert message["id"] == str(message["data"]["seq"])
                    found.append(message["data"])

    with ThreadPoolExecutor() as readers:
        sse, ws, pieces = (readers.submit(reader) for reader in (by_sse, by_websocket, in_pieces))
        call(site, "wait_for_sessions", {"session_ids": [session_id]})
        call(site, "end_session", {"session_id": session_id})
        told = transcript(site, session_id)
        *messages, end = sse.result(60)
        assert [message["data"] for message in messages] == told
        assert end == {"event": "end", "data": {"why": "ended"}}
        assert ws.result(60) == told
        assert pieces.result(60) == told
    assert [event["seq"] for event in told] == list(range(1, len(told) + 1))

    # Afterwards: the whole log, a part of it, or nothing, and the end each time.
    with websocket(site, session_id, f"?after={len(told) - 2}") as stream:
        assert [json.loads(message) for message in stream] == told[-2:]
        assert stream.close_code == 1000
        assert stream.close_reason == "ended"
    with server_sent(site, session_id, f"?after={len(told)}") as rest:
        assert [message["data"] for message in rest] == [{"why": "ended"}]
    call(site, "end_session", {"session_id": session_id, "delete": True})
    assert refusal(site, session_id) == 404


def refusal(site: Site, session_id: str, query: str = "", **headers: str) -> int:
    """The status with which a stream is refused, which is the same in both ways."""
    with httpx2.Client(trust_env=False, timeout=30) as client:
        answer = client.get(f"{site.root}/v1/sessions/{session_id}/events{query}", headers=headers)
    options = {"additional_headers": {name: value for name, value in headers.items() if name != "origin"}}
    if "origin" in headers:
        options["origin"] = headers["origin"]  # type: ignore[assignment]
    with pytest.raises(InvalidStatus) as caught, websocket(site, session_id, query, **options):
        pass
    assert caught.value.response.status_code == answer.status_code
    return answer.status_code


def test_p06_a_stream_is_refused_to_foreign_pages_and_for_numbers_that_are_none(site: Site) -> None:
    """P06: a browser lets any page open a WebSocket, so the Origin is looked at before it is accepted."""
    session_id = call(site, "spawn_agent", {"prompt": prompt_with([{"text": "x"}])})["session_id"]
    assert refusal(site, session_id, origin="http://evil.example") == 403
    for wrong in ("-1", "x", "1.5", "1e3", "9" * 17, "%00", "٣"):
        assert refusal(site, session_id, f"?after={wrong}") == 400, wrong
    assert refusal(site, "no-such-session") == 404


@pytest.mark.slow
def test_p11_a_reader_that_reads_nothing_holds_nobody_up(site: Site) -> None:
    """P11: what it does not take stays in the store."""
    session_id = call(site, "spawn_agent", {"prompt": WORK})["session_id"]
    with ThreadPoolExecutor() as readers:
        deaf = []
        for _ in range(20):
            stream = socket.create_connection(("127.0.0.1", site.port))
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            stream.sendall(f"GET /v1/sessions/{session_id}/events HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            deaf.append(stream)
        good = readers.submit(lambda: [m["data"] for m in take(server_sent(site, session_id))])
        assert call(site, "continue_session", {"session_id": session_id, "prompt": WORK})["turn"] == 2
        call(site, "end_session", {"session_id": session_id})
        assert good.result(60)[:-1] == transcript(site, session_id)
        for stream in deaf:
            stream.close()


def take(stream: Any) -> list[dict[str, Any]]:
    with stream as messages:
        return list(messages)


async def test_p11_one_who_takes_nothing_for_too_long_is_cut_off(tmp_path: Path, monkeypatch: Any) -> None:
    """P11: its place is free again, and no page is read for it any more."""
    monkeypatch.setattr(events, "SEND_S", 0.05)
    aborted = anyio.Event()
    asked = 0
    async with open_house(tmp_path) as house:
        outcome = await run(house, [{"text": "x"}])
        streams = EventStreams(ReadyBackend(house), LOCAL)

        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            nonlocal asked
            asked += 1
            if message["type"] == "http.response.body":
                await anyio.sleep_forever()

        scope: Any = {
            "type": "http",
            "path_params": {"session_id": outcome.session_id},
            "headers": [],
            "query_string": b"",
            "state": {"abort": aborted.set},
        }
        with anyio.fail_after(30):
            await streams._server_sent(scope, receive, send)
        assert aborted.is_set()
        assert asked == 2
        assert not streams._open[ME]

        # A stream does not live for ever, so that credentials are looked at again.
        monkeypatch.setattr(events, "SEND_S", 30)
        monkeypatch.setattr(events, "LIFE_S", 0.05)
        answers: list[Any] = []

        async def note(message: Any) -> None:
            answers.append(message)

        with anyio.fail_after(30):
            await streams._server_sent(scope, receive, note)
        assert answers[-1] == {
            "type": "http.response.body",
            "body": b'event: end\ndata: {"why": "again"}\n\n',
            "more_body": False,
        }

        # The number of streams of one account is bounded.
        monkeypatch.setattr(events, "MAX_STREAMS", 0)
        answers.clear()
        await streams._server_sent({**scope, "method": "GET"}, receive, note)
        assert answers[0]["status"] == 429


@pytest.mark.slow
def test_streams_end_at_once_when_the_server_drains(tmp_path: Path) -> None:
    with serving_http(tmp_path) as site:
        session_id = call(site, "spawn_agent", {"prompt": prompt_with([{"text": "x"}])})["session_id"]
        with websocket(site, session_id) as ws, server_sent(site, session_id) as sse:
            for _ in range(2):
                next(sse)
            site.wire.process.send_signal(signal.SIGTERM)
            assert list(sse)[-1]["event"] == "end"
            with pytest.raises(ConnectionClosed):
                while True:
                    ws.recv(30)
            assert ws.close_code in (1001, 1012)
        assert site.wire.wait() == 0
