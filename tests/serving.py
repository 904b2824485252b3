"""A folder behind a real HTTP server that counts what it is asked, and fails when told to."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served(ThreadingHTTPServer):
    """`ranges`: whether ranges are answered. `failures`: how many requests still fail with 503."""

    daemon_threads = True

    def __init__(self, folder: Path, ranges: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.ranges, self.failures = folder, ranges, 0
        self.asked: Counter[str] = Counter()
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Served

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.flying += 1
            server.most_flying = max(server.most_flying, server.flying)
        try:
            self.answer()
        finally:
            with server.lock:
                server.flying -= 1

    def answer(self) -> None:
        path = self.server.folder / self.path.removeprefix("/set/")
        self.server.asked[path.name] += 1
        with self.server.lock:
            failing = self.server.failures > 0
            self.server.failures -= failing
        if failing:
            return self.reply(503, b"")
        if not path.is_file():
            return self.reply(404, b"")
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not (self.server.ranges and wanted):
            return self.reply(200, data)
        start, stop = int(wanted[1]), int(wanted[2] or len(data)) + 1
        return self.reply(206, data[start:stop]) if start < len(data) else self.reply(416, b"")

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def served(folder: Path, *, ranges: bool = True) -> Iterator[Served]:
    """The folder under `…/set/`, for the length of the block."""
    server = Served(folder, ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
