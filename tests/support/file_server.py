"""A web server with one file, that misbehaves when it is told to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves ``content`` under any path."""

    content: bytes
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers ends without a word."""
    errors: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    ranges: bool = True
    tagged: bool = True
    redirect: str = ""
    asked: list[str] = field(default_factory=list)
    """The range of each request; "" if it had none."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/m.gguf"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@contextmanager
def file_server(content: bytes) -> Iterator[FileServer]:
    served = FileServer(content)

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _answer(self, served)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    served.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(call: BaseHTTPRequestHandler, served: FileServer) -> None:
    served.asked.append(call.headers.get("Range", ""))
    call.close_connection = True
    tag = f'"{served.sha256[:16]}"'
    if served.errors:
        call.send_error(served.errors.pop(0))
        return
    if served.redirect:
        call.send_response(302)
        call.send_header("Location", served.redirect)
        call.send_header("Content-Length", "0")
        call.end_headers()
        return
    asked, start = call.headers.get("Range", ""), 0
    if served.ranges and asked and call.headers.get("If-Range") == tag:
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(served.content):
            call.send_error(416)
            return
    part = served.content[start:]
    call.send_response(206 if start else 200)
    call.send_header("Content-Length", str(len(part)))
    if served.tagged:
        call.send_header("ETag", tag)
    call.end_headers()
    call.wfile.write(part[: served.cut_after.pop(0)] if served.cut_after else part)
