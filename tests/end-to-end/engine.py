"""What tests ask of the Docker engine themselves, through its API at DOCKER_HOST."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import urllib.parse
from typing import Any


class Refused(Exception):
    """The engine's answer is an error."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _connection() -> http.client.HTTPConnection:
    address = urllib.parse.urlsplit(os.environ["DOCKER_HOST"])
    if address.scheme == "unix":
        return _UnixConnection(address.path)
    return http.client.HTTPConnection(address.hostname, address.port, timeout=120)


def call(method: str, path: str, body: Any = None, /, **query: Any) -> bytes:
    """One request; the answer's body. A body that is not bytes is sent as JSON."""
    kind = "application/x-tar"
    if body is not None and not isinstance(body, bytes):
        kind, body = "application/json", json.dumps(body).encode()
    if query:
        path = f"{path}?{urllib.parse.urlencode(query)}"
    with contextlib.closing(_connection()) as connection:
        connection.request(method, path, body, {"Content-Type": kind} if body else {})
        answer = connection.getresponse()
        content = answer.read()
    if answer.status >= 400:
        raise Refused(f"{method} {path}: {answer.status} {content.decode(errors='replace')}")
    return content


def import_image(name: str, root: bytes) -> None:
    """Make an image of one layer from a tar archive, as `docker import` does."""
    said = call("POST", "/images/create", root, fromSrc="-", repo=name)
    if b"errorDetail" in said:
        raise Refused(said.decode(errors="replace"))


class Container:
    """A container of the tests' own."""

    def __init__(self, name: str, **settings: Any) -> None:
        self.path = f"/containers/{name}"
        call("POST", "/containers/create", settings, name=name)

    def start(self) -> None:
        call("POST", f"{self.path}/start")

    def state(self) -> dict:
        return json.loads(call("GET", f"{self.path}/json"))["State"]

    def stop(self, patience: int) -> None:
        """SIGTERM, and SIGKILL after so many seconds."""
        call("POST", f"{self.path}/stop", t=patience)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        return json.loads(call("POST", f"{self.path}/wait"))["StatusCode"]

    def log(self) -> str:
        """All that it has printed, both streams."""
        frames = call("GET", f"{self.path}/logs", stdout=1, stderr=1)
        # Each frame has 8 bytes before it, the last 4 of which are its length.
        text, at = b"", 0
        while at < len(frames):
            length = int.from_bytes(frames[at + 4:at + 8])
            text += frames[at + 8:at + 8 + length]
            at += 8 + length
        return text.decode(errors="replace")

    def remove(self) -> None:
        call("DELETE", self.path, force=1, v=1)
