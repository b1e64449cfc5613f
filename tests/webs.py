"""Servers that stand for the internet in tests: a git host, a Python package index, an npm registry."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import anyio
import h11
from anyio.abc import ByteStream

from tests.egress import Answer, page

Handler = Callable[[str, str, Mapping[str, str], bytes], bytes]
"""Method, target, headers (lower case), body → a whole HTTP answer."""


def website(handle: Handler) -> Answer:
    """A server of one request for each connection."""

    async def answer(stream: ByteStream) -> None:
        http = h11.Connection(h11.SERVER)
        request: h11.Request | None = None
        body = b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await stream.receive())
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        assert request is not None
        headers = {name.decode(): value.decode() for name, value in request.headers}
        given = (request.method.decode(), request.target.decode(), headers, body)
        await stream.send(await anyio.to_thread.run_sync(handle, *given))

    return answer


def git_host(root: Path) -> Answer:
    """git's own smart HTTP server over the repositories below a directory."""

    def handle(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        path, _, query = target.partition("?")
        variables = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
        }
        done = subprocess.run(
            ["git", "http-backend"], input=body, env=variables, capture_output=True, check=False, timeout=30
        )
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        status = next((line.removeprefix("Status: ") for line in lines if line.startswith("Status: ")), "200 OK")
        return page(content, status, *(line for line in lines if line and not line.startswith("Status: ")))

    return website(handle)


def make_repository(root: Path, name: str, commits: list[Mapping[str, str]]) -> list[str]:
    """A bare repository with these commits on main, and a tag ``v1`` at the first; their ids."""
    work = root / f"{name}.work"
    work.mkdir(parents=True)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]
        environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(["git", *identity, *words], cwd=work, env=environment, capture_output=True, check=True)
        return done.stdout.decode().strip()

    git("init", "-q")
    ids = []
    for files in commits:
        for path, content in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(content)
        git("add", "-A")
        git("commit", "-q", "-m", "change")
        ids.append(git("rev-parse", "HEAD"))
        if len(ids) == 1:
            git("tag", "v1")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    git("clone", "-q", "--bare", ".", str(root / name))
    return ids


WHEEL: Final = "rookery_parcel-1.0-py3-none-any.whl"


def package_index() -> Answer:
    """A Python package index (PEP 503) with one wheel, ``rookery-parcel``."""
    parcel = io.BytesIO()
    with zipfile.ZipFile(parcel, "w") as wheel:
        info = "rookery_parcel-1.0.dist-info"
        wheel.writestr("rookery_parcel.py", "CONTENT = 'delivered by pip'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: rookery-parcel\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")

    def handle(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if target == "/simple/rookery-parcel/":
            return page(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "200 OK", "Content-Type: text/html")
        if target == f"/files/{WHEEL}":
            return page(parcel.getvalue(), "200 OK", "Content-Type: application/zip")
        return page(b"", "404 Not Found")

    return website(handle)


def npm_registry(base: str) -> Answer:
    """An npm registry with one package, ``rookery-parcel``; ``base`` is its URL."""
    parcel = io.BytesIO()
    with tarfile.open(fileobj=parcel, mode="w:gz") as archive:
        files = {
            "package.json": json.dumps({"name": "rookery-parcel", "version": "1.0.0", "main": "index.js"}),
            "index.js": "module.exports = 'delivered by npm'\n",
        }
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(parcel.getvalue()).digest()).decode()
    version = {
        "name": "rookery-parcel",
        "version": "1.0.0",
        "dist": {"tarball": f"{base}/rookery-parcel/-/rookery-parcel-1.0.0.tgz", "integrity": integrity},
    }
    document = {"name": "rookery-parcel", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}

    def handle(method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        if target == "/rookery-parcel":
            return page(json.dumps(document).encode(), "200 OK", "Content-Type: application/json")
        if target.endswith(".tgz"):
            return page(parcel.getvalue(), "200 OK", "Content-Type: application/octet-stream")
        return page(b"{}", "404 Not Found")

    return website(handle)
