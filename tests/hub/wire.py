"""HTTP plumbing of the test hub: requests and their log, answers, faults and the loopback server."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """One request as it arrived, and what became of it; these make up the request log.

    `path` is still percent-encoded and has no query, header names are in lower case, `server` is "hub" or "cdn".
    `status` stays 0 where a fault closed the connection before an answer; `bytes_out` counts body bytes alone.
    """

    server: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    status: int = 0
    bytes_out: int = 0

    @property
    def bytes_in(self) -> int:
        return len(self.body)

    @property
    def token(self) -> str:
        """The bearer token, or ""."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else ""

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def option(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.option(name).lower() in ("1", "true")

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.status}"


class RequestLog(list[Request]):
    """Every request in the order of arrival."""

    def select(self, method: str = "", path: str = "", server: str = "") -> list[Request]:
        """Requests of that method (any if "") whose encoded path matches the regular expression `path`."""
        return [r for r in self if method in ("", r.method) and server in ("", r.server) and re.search(path, r.path)]


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class RefusedError(Exception):
    """Raised by a route to answer with an error status; `code` is what the client maps to its exceptions."""

    def __init__(self, status: int, message: str, code: str = "", **fields: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = Answer.json({"error": message, **fields}, status, headers)


@dataclass
class Fault:
    """A rule that spoils some answers.

    It strikes requests of `method` (any if "") whose encoded path matches the regular expression `path`, on the server
    named (any if ""): it lets the first `skip` of them pass and then strikes `times` of them (None: all). `hits`
    counts the strikes. Of several rules that fit a request, the first in `hub.faults` that is not used up strikes.

    Attributes:
        delay_s: wait before anything else; ends early when the hub stops.
        lose: "request" closes the connection before the request has any effect, "answer" after it had its effect.
        status: replaces the answer by this status and `body`; the request has no effect unless `is_done`.
        is_done: the request has its effect although `status` says otherwise, as behind a gateway that timed out.
        headers: set on the answer; None removes one.
        cut_to: sends only so many body bytes under an honest Content-Length.
        drop_after: sends only so many body bytes of those announced, then closes the connection.
        flip_bit_at: turns over the lowest bit of the body byte at this offset.
    """

    method: str = ""
    path: str = ""
    server: str = ""
    skip: int = 0
    times: int | None = 1
    delay_s: float = 0.0
    lose: str = ""
    status: int = 0
    is_done: bool = False
    body: bytes = b""
    headers: dict[str, str | None] = field(default_factory=dict)
    cut_to: int | None = None
    drop_after: int | None = None
    flip_bit_at: int | None = None
    seen: int = 0
    hits: int = 0

    def __post_init__(self) -> None:
        if self.lose not in ("", "request", "answer"):
            raise ValueError(f"lose: expected 'request' or 'answer', got {self.lose!r}")

    def strikes(self, request: Request) -> bool:
        """Count the request if it fits, and say whether its turn has come."""
        fits = (
            self.method in ("", request.method)
            and self.server in ("", request.server)
            and re.search(self.path, request.path) is not None
        )
        self.seen += fits
        return fits and self.seen > self.skip and (self.times is None or self.hits < self.times)

    def spoil(self, answer: Answer) -> None:
        for name, value in self.headers.items():
            present = next((key for key in answer.headers if key.lower() == name.lower()), name)
            answer.headers.pop(present, None)
            if value is not None:
                answer.headers[name] = value
        if self.cut_to is not None:
            answer.body = answer.body[: self.cut_to]
        if self.flip_bit_at is not None:
            flipped = bytearray(answer.body)
            flipped[self.flip_bit_at] ^= 1
            answer.body = bytes(flipped)


class LoopbackServer(ThreadingHTTPServer):
    """An HTTP/1.1 server on 127.0.0.1 that can be stopped even while clients keep connections open."""

    # Handler threads are joined by server_close, so that stop leaves none behind.
    daemon_threads = False
    request_queue_size = 64

    def __init__(
        self, name: str, port: int, route: Callable[[Request], Answer], log: RequestLog, faults: list[Fault]
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name, self.route, self.log, self.faults = name, route, log, faults
        self.port = self.server_address[1]
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self.fault_lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=f"test-{name}")
        self.thread.start()

    def server_bind(self) -> None:
        # The parent class would ask the resolver for the host's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up is no fault of the hub.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.errors.append(traceback.format_exc())

    def striking_fault(self, request: Request) -> Fault | None:
        with self.fault_lock:
            striking = [fault for fault in self.faults if fault.strikes(request)]
            if not striking:
                return None
            striking[0].hits += 1
            return striking[0]

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        for connection in list(self.connections):
            # Its own thread may be faster.
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: LoopbackServer

    def handle_request(self) -> None:
        request = self.read_request()
        self.server.log.append(request)
        fault = self.server.striking_fault(request)
        is_cut_short = fault is not None and self.server.stopping.wait(fault.delay_s)
        if fault and (is_cut_short or fault.lose == "request"):
            return self.hang_up()
        replaced = Answer(fault.status, fault.body) if fault and fault.status else None
        done = self.ask_route(request) if replaced is None or (fault and fault.is_done) else None
        answer = replaced or done or Answer()
        if fault and fault.lose == "answer":
            return self.hang_up()
        if fault:
            fault.spoil(answer)
        self.send(request, answer, fault.drop_after if fault else None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read_request(self) -> Request:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(url.query, keep_blank_values=True)
        return Request(self.server.name, self.command, url.path, query, headers, body)

    def ask_route(self, request: Request) -> Answer:
        try:
            return self.server.route(request)
        except RefusedError as refused:
            return refused.answer
        except Exception:
            self.server.errors.append(traceback.format_exc())
            # A status that the client does not try again.
            return Answer.json({"error": traceback.format_exc()}, 501, {"X-Error-Message": "the test hub is at fault"})

    def send(self, request: Request, answer: Answer, drop_after: int | None) -> None:
        body = b"" if request.method == "HEAD" else answer.body[:drop_after]
        # The log is filled in first: the client may look at it as soon as it has the answer.
        request.status, request.bytes_out = answer.status, len(body)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        if drop_after is not None:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        # The hub may have been stopped meanwhile.
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on stderr: the log is in `hub.requests`."""
