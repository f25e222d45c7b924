"""The test Hub's connections: reading requests, writing answers, what goes wrong on purpose, and the log."""

import contextlib
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_calls import Request, Response, refusal
from hub_repos import HubError

PIECE = 2**16  # bytes that are read at once


@dataclass(frozen=True)
class Logged:
    """A request as it came, and what went back. `status` is 0 where the connection was cut before an answer."""

    method: str
    path: str  # unquoted, without the query
    query: str
    status: int
    received: int  # bytes of the request's body
    sent: int  # bytes of the response's body
    with_token: bool


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match."""

    method: str  # a regular expression, like the path's
    path: str
    times: int
    status: int = 0  # answer with that instead
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None  # bytes of a body after which the connection ends
    lose: bool = False  # do the work and end the connection without an answer
    seconds: float = 0  # wait before the work
    gate: threading.Event | None = None  # wait for it before the work


class Cut(Exception):
    """The connection ends here; `received` bytes of the request's body had come."""

    def __init__(self, received: int):
        super().__init__(received)
        self.received = received


class Sockets(ThreadingHTTPServer):
    """A thread for each connection. `answer` says what goes back, `log` and `faults` stand beside."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, answer: Callable[[Request], Response]) -> None:
        self.answer = answer
        self.open: set[socket.socket] = set()  # connections, so that the idle ones can be ended too
        self.log: list[Logged] = []
        self.bugs: list[str] = []
        self.received: list[bytes] = []  # every request whole: its line, headers and body
        self.faults: list[Fault] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def take_fault(self, method: str, path: str) -> Fault:
        """The first one that matches and is not used up; otherwise one that does nothing."""
        with self._lock:
            for fault in self.faults:
                if fault.times > 0 and re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return Fault(method, path, 0)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no bug
            self.bugs.append(traceback.format_exc())

    def end_connections(self) -> None:
        for connection in list(self.open):
            with contextlib.suppress(OSError):  # it ended by itself
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    server: Sockets
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the headers go before the body, which would wait 40 ms for their receipt

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, *message) -> None:
        """The log is a list, not the terminal."""

    def serve(self) -> None:
        fault = self.server.take_fault(self.command, unquote(urlsplit(self.path).path))
        try:
            body = self.read_body(None if self.command == "GET" else fault.cut)
        except Cut as cut:
            self.hang_up(cut.received)
            return
        self.server.received.append(b"\n".join([self.raw_requestline, bytes(self.headers), body]))
        time.sleep(fault.seconds)
        if fault.gate is not None:
            fault.gate.wait(60)
        response = self.answer_to(body, fault)
        if fault.lose:
            self.hang_up(len(body))
            return
        length = 0 if self.command == "HEAD" else len(response.body)
        sent = length if fault.cut is None or self.command != "GET" else min(fault.cut, length)
        self.note(response.status, len(body), sent)
        self.send(response, sent)
        self.close_connection |= sent < length

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer_to(self, body: bytes, fault: Fault) -> Response:
        if fault.status:
            return refusal(HubError(fault.status, "A fault that the test asked for", **fault.headers))
        address = urlsplit(self.path)
        path = tuple(unquote(part) for part in address.path.lstrip("/").split("/"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        return self.server.answer(Request(self.command, path, parse_qs(address.query), headers, body))

    def note(self, status: int, received: int, sent: int) -> None:
        """Before the answer leaves, so that who has it finds the entry."""
        address, with_token = urlsplit(self.path), "Authorization" in self.headers
        about = Logged(self.command, unquote(address.path), address.query, status, received, sent, with_token)
        self.server.log.append(about)

    def hang_up(self, received: int) -> None:
        self.note(0, received, 0)
        self.close_connection = True

    def send(self, response: Response, end: int) -> None:
        """Headers that promise the whole body, and its first `end` bytes."""
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.status != 304:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        self.wfile.write(response.body[:end])

    def read_body(self, stop: int | None) -> bytes:
        """The request's body, whole, or Cut after `stop` bytes or where the client went away."""
        body = bytearray()
        for length in self.body_lengths():
            end = len(body) + length
            while len(body) < end:
                if stop is not None and len(body) >= stop:
                    raise Cut(len(body))
                piece = self.rfile.read(min(end - len(body), PIECE if stop is None else stop - len(body)))
                if not piece:
                    raise Cut(len(body))
                body += piece
        return bytes(body)

    def body_lengths(self) -> Iterator[int]:
        """Of the pieces a body comes in: one, or as many as chunked transfer has."""
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield int(self.headers.get("Content-Length", 0))
            return
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield size
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
