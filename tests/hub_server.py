"""A hub on this machine: a small server that speaks as much of the hub's protocol as is used."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
TOKEN = "Bearer hf_secret"
Answer = tuple[int, dict[str, str], bytes]


class Hub:
    """What the server has and was asked for: {"owner/name": {"file": bytes}}.

    Of files in `breaking` only the first half is sent, once. `card` is the front matter of all.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.breaking: set[str] = set()
        self.card: dict[str, str] = {}
        self.wrong_etags = False
        self.asked: list[tuple[str, str, str | None]] = []
        self.ranges: list[str] = []
        self.endpoint = ""

    def answer(self, path: str, token: str | None) -> Answer:
        """Status, headers and body of a request."""
        if path.startswith("/api/models/"):
            return self._about(path.removeprefix("/api/models/"))
        name, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if name in self.gated and token != TOKEN:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        if revision not in ("main", "v2", COMMIT):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        content = self.repositories[name].get(file)
        if content is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        etag = hashlib.sha256(b"x" if self.wrong_etags else content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content

    def _about(self, rest: str) -> Answer:
        """The list of a repository's files; gated ones are listed, too."""
        name = rest.partition("?")[0].partition("/revision/")[0]
        files = self.repositories.get(name)
        if files is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        document = {
            "id": name, "sha": COMMIT, "gated": "manual" if name in self.gated else False,
            "cardData": self.card,
            "siblings": [{"rfilename": file, "size": len(data)} for file, data in files.items()],
        }  # fmt: skip
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _send(self, with_body: bool) -> None:
        token = self.headers.get("Authorization")
        self.hub.asked.append((self.command, self.path, token))
        status, headers, body = self.hub.answer(self.path, token)
        start = self._start(status, body) if with_body else 0
        self.send_response(206 if start else status)
        for key, value in headers.items():
            self.send_header(key, value)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if with_body:
            self._write(body[start:])

    def _start(self, status: int, body: bytes) -> int:
        asked = self.headers.get("Range", "")
        if asked and status == 200:
            self.hub.ranges.append(asked)
            return min(int(asked.removeprefix("bytes=").partition("-")[0]), len(body))
        return 0

    def _write(self, body: bytes) -> None:
        file = self.path.rpartition("/")[2]
        if file in self.hub.breaking:
            self.hub.breaking.discard(file)
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._send(False)

    def do_GET(self) -> None:
        self._send(True)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens until the end of the block."""
    served = Hub()
    handler = type("Handler", (_Handler,), {"hub": served})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    served.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield served
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
