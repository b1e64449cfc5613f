"""The data plane: routes requests to sandboxes, and serves envd's services and its plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import time
import zlib
from collections.abc import AsyncIterator
from typing import Any, Final

from e2b.envd.client_shared import ENVD_JSON_CODEC
from e2b.envd.filesystem.filesystem_connect import FilesystemASGIApplication
from e2b.envd.process.process_connect import ProcessASGIApplication
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.e2b_cloud.cloud import Cloud
from tests.e2b_cloud.faults import App, BrokenConnectionError, Receive, Scope, Send
from tests.e2b_cloud.filesystem_service import FilesystemService
from tests.e2b_cloud.machine import GuestError, MachineGoneError
from tests.e2b_cloud.process_service import DroppedError, ProcessService, current
from tests.e2b_cloud.sandbox import Sandbox

PIECE: Final = 256 * 1024
STREAMS: Final = ("/process.Process/Start", "/process.Process/Connect")
STATUS: Final = {"not_found": 404, "invalid_argument": 400, "unauthenticated": 401, "resource_exhausted": 507}


def header(scope: Scope, name: str) -> str | None:
    """A header of a request."""
    wanted = name.encode()
    return next((value.decode() for key, value in scope["headers"] if key == wanted), None)


def problem(status: int, message: str) -> JSONResponse:
    """An error as envd and the edge give it."""
    return JSONResponse({"code": status, "message": message}, status_code=status)


def lost(identity: str) -> JSONResponse:
    """What the edge says of a sandbox that does not run."""
    body = {"sandboxId": identity, "message": "The sandbox was not found", "code": 502}
    return JSONResponse(body, status_code=502)


def signed(sandbox: Sandbox, request: Request) -> bool:
    """Whether a request carries a valid signature for this file."""
    query = request.query_params
    if "signature" not in query:
        return False
    operation = "read" if request.method == "GET" else "write"
    parts = [query.get("path", ""), operation, query.get("username", ""), sandbox.token]
    if expiry := query.get("signature_expiration"):
        if int(expiry) < time.time():
            return False
        parts.append(expiry)
    digest = base64.b64encode(hashlib.sha256(":".join(parts).encode()).digest()).decode().rstrip("=")
    return hmac.compare_digest(query["signature"], f"v1_{digest}")


async def health(request: Request) -> Response:
    """``GET /health``."""
    return Response(status_code=204)


async def get_file(request: Request) -> Response:
    """``GET /files``: the raw bytes."""
    sandbox = current.get()
    assert sandbox.machine is not None
    answer, (file,) = await sandbox.machine.ask("read", path=request.query_params.get("path", ""), user=user(request))

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while piece := await asyncio.to_thread(os.read, file, PIECE):
                yield piece
        finally:
            os.close(file)

    headers = {"content-type": "application/octet-stream"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return StreamingResponse(packed(pieces()), headers=headers)
    headers["content-length"] = str(answer["size"])
    return StreamingResponse(pieces(), headers=headers)


async def packed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream, compressed."""
    packer = zlib.compressobj(level=1, wbits=31)
    async for piece in pieces:
        if out := packer.compress(piece):
            yield out
    yield packer.flush()


async def unpacked(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A compressed stream, as it was."""
    unpacker = zlib.decompressobj(wbits=31)
    async for piece in pieces:
        yield unpacker.decompress(piece)
    yield unpacker.flush()


def user(request: Request) -> str:
    """Whose home relative paths are in, and whose file it becomes."""
    return request.query_params.get("username") or current.get().settings.default_user


async def post_file(request: Request) -> Response:
    """``POST /files``: one file as the body, or several as a form."""
    metadata = {
        name[len("x-metadata-") :]: value for name, value in request.headers.items() if name.startswith("x-metadata-")
    }
    path = request.query_params.get("path", "")
    if request.headers.get("content-type", "").startswith("application/octet-stream"):
        body = request.stream()
        if request.headers.get("content-encoding") == "gzip":
            body = unpacked(body)  # type: ignore[assignment]
        return JSONResponse([await write(path, user(request), body, metadata)])
    written = []
    async with request.form(max_files=10_000) as form:
        uploads = form.getlist("file")
        for upload in uploads:
            assert not isinstance(upload, str)

            async def pieces(upload: Any = upload) -> AsyncIterator[bytes]:
                while piece := await upload.read(PIECE):
                    yield piece

            target = path if path and len(uploads) == 1 else str(upload.filename)
            written.append(await write(target, user(request), pieces(), metadata))
    return JSONResponse(written)


async def write(path: str, username: str, body: AsyncIterator[bytes], metadata: dict[str, str]) -> dict[str, Any]:
    """Write one file; what the API tells of it."""
    sandbox = current.get()
    assert sandbox.machine is not None
    answer, (file,) = await sandbox.machine.ask("write", path=path, user=username, metadata=metadata)
    try:
        async for piece in body:
            left = memoryview(piece)
            while left:
                left = left[await asyncio.to_thread(os.write, file, left) :]
    finally:
        os.close(file)
    return {"name": answer["name"], "type": "file", "path": answer["path"], "metadata": metadata or None}


async def refused(request: Request, error: Exception) -> Response:
    """What the guest refused."""
    assert isinstance(error, GuestError)
    return problem(STATUS.get(error.code, 500), str(error))


async def vanished(request: Request, error: Exception) -> Response:
    """The machine ended meanwhile."""
    return lost(current.get().identity)


def data_plane(cloud: Cloud) -> App:
    """The whole origin."""
    services: dict[str, Any] = {
        "process.Process": ProcessASGIApplication(ProcessService(), codecs=[ENVD_JSON_CODEC], read_max_bytes=None),
        "filesystem.Filesystem": FilesystemASGIApplication(FilesystemService(), codecs=[ENVD_JSON_CODEC]),
    }
    files = Starlette(
        routes=[
            Route("/health", health),
            Route("/files", get_file, methods=["GET"]),
            Route("/files", post_file, methods=["POST"]),
        ],
        exception_handlers={GuestError: refused, MachineGoneError: vanished},
    )

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await files(scope, receive, send)
            return
        identity = header(scope, "e2b-sandbox-id") or ""
        sandbox = cloud.sandboxes.get(identity)
        if sandbox is not None and sandbox.paused and sandbox.settings.auto_resume:
            async with cloud.lock(identity):
                if sandbox.paused:
                    await cloud.resume(sandbox, sandbox.timeout_s, memory=sandbox.pause_mode == "full")
        if sandbox is None or not sandbox.running:
            await lost(identity)(scope, receive, send)
            return
        allowed = scope["path"] == "/health" or header(scope, "x-access-token") == sandbox.token
        if not allowed and not signed(sandbox, Request(scope)):
            await problem(401, "unauthorized access, please provide a valid access token")(scope, receive, send)
            return
        current.set(sandbox)
        service = services.get(scope["path"].split("/")[1], files)
        if scope["path"] in STREAMS:
            await watched(cloud, service, scope, receive, send)
        else:
            await service(scope, receive, send)

    return application


async def watched(cloud: Cloud, service: App, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a stream that ends when its client leaves, at once and not at its next event.

    connectrpc turns every error into an end frame, and an error of ours into one of its own; a stream that must break
    off without one is broken here.
    """
    incoming: asyncio.Queue[Any] = asyncio.Queue()
    left = asyncio.Event()
    broken = False

    async def pump() -> None:
        while True:
            message = await receive()
            await incoming.put(message)
            if message["type"] == "http.disconnect":
                left.set()
                return

    async def guarded(message: Any) -> None:
        nonlocal broken
        if message["type"] == "http.response.body" and is_dropped(message.get("body", b"")):
            broken = True
        if not broken and not left.is_set():
            await send(message)

    pumping = asyncio.create_task(pump())
    application: Any = service
    serving: asyncio.Task[None] = asyncio.create_task(application(scope, incoming.get, guarded))
    leaving = asyncio.create_task(left.wait())
    try:
        await asyncio.wait([serving, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            if cloud.faults.wedged_subscribers:
                for process in current.get().processes.values():
                    for subscriber in process.subscribers:
                        subscriber.wedged = subscriber.wedged or subscriber.task is serving
            serving.cancel()
        failure = (await asyncio.gather(serving, return_exceptions=True))[0]
    finally:
        for task in (pumping, serving, leaving):
            task.cancel()
    if broken or isinstance(failure, DroppedError):
        raise BrokenConnectionError
    if isinstance(failure, Exception) and not left.is_set():
        raise failure


def is_dropped(body: bytes) -> bool:
    """Whether connectrpc made an end frame of our :class:`DroppedError`."""
    return body[:1] == b"\x02" and DROPPED in body


DROPPED: Final = b"the double breaks this stream off"
