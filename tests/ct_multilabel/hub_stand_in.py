"""A small server on loopback that speaks as much of the Hugging Face hub's protocol as the downloader needs.

It answers as the hub does for a gated data set: anybody may read the lists, files need a token whose account has
accepted the licence. No xet headers are sent, so that the library uses plain HTTP. Tests spoil it by its attributes.
"""

import hashlib
import json
import os
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "ibrahimhamamci/CT-RATE"
TOKEN = "hf_of_the_tests"


class HubStandIn:
    """`files`: path -> bytes. What else it holds is how the server misbehaves, and what it was asked."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.commit = "c7" * 20
        self.licence_accepted = True
        self.listed_sizes: dict[str, int] = {}  # path -> a size in the lists that is not the file's
        self.halves: dict[str, int] = {}  # path -> how many more times the connection ends after half of the bytes
        self.resets: dict[str, int] = {}  # path -> how many more times it is reset there
        self.errors: dict[str, int] = {}  # path, or "revision" or "paths-info" -> status of every answer
        self.held: dict[str, threading.Event] = {}  # path -> an event to wait for after half of the bytes
        self.requests: list[tuple[str, str, str | None]] = []  # (method, path, Range header)

    def __enter__(self) -> "HubStandIn":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        for event in self.held.values():
            event.set()
        self.server.shutdown()
        self.server.server_close()

    def asked(self, method: str) -> Counter:
        """Path of a file -> number of requests for it."""
        prefix = f"/datasets/{REPOSITORY}/resolve/{self.commit}/"
        return Counter(path.removeprefix(prefix) for m, path, _ in self.requests if m == method and prefix in path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.note()
        self.send_file(with_bytes=False)

    def do_GET(self) -> None:
        path = self.note()
        if path.startswith("/api/"):
            self.send_list(path, "revision", lambda: {"id": REPOSITORY, "sha": self.hub.commit})
        else:
            self.send_file(with_bytes=True)

    def do_POST(self) -> None:
        path = self.note()
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        files = self.hub.files
        self.send_list(path, "paths-info", lambda: [self.entry(name) for name in form["paths"] if name in files])

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        if "/datasets/" in path:  # the library asks for other things, too, once a day
            self.hub.requests.append((self.command, path, self.headers["Range"]))
        return path

    def entry(self, name: str) -> dict:
        size = self.hub.listed_sizes.get(name, len(self.hub.files[name]))
        return {"type": "file", "path": name, "size": size, "oid": "0" * 40}

    def send_list(self, path: str, kind: str, content) -> None:
        prefix = f"/api/datasets/{REPOSITORY}/{kind}/"
        if self.headers["Authorization"] not in (None, f"Bearer {TOKEN}"):
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif not path.startswith(prefix):
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif path.removeprefix(prefix) not in ("main", self.hub.commit):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        elif kind in self.hub.errors:
            self.refuse(self.hub.errors[kind], None, "out of order")
        else:
            body = json.dumps(content()).encode()
            self.answer(200, {"Content-Type": "application/json", "Content-Length": len(body)})
            self.wfile.write(body)

    def send_file(self, with_bytes: bool) -> None:
        path = unquote(urlsplit(self.path).path).removeprefix(f"/datasets/{REPOSITORY}/resolve/{self.hub.commit}/")
        token = self.headers["Authorization"]
        if token is None:
            self.refuse(401, "GatedRepo", "Access to this dataset is restricted. Please log in.")
        elif token != f"Bearer {TOKEN}":
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif not self.hub.licence_accepted:
            self.refuse(403, "GatedRepo", "You are not in the authorized list.")
        elif path in self.hub.errors:
            self.refuse(self.hub.errors[path], None, "out of order")
        elif path not in self.hub.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            self.send_bytes(path, with_bytes)

    def send_bytes(self, path: str, with_bytes: bool) -> None:
        content = self.hub.files[path]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        headers["Content-Length"] = len(content) - start
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, headers)
        if not with_bytes:
            return
        half = max(start, len(content) // 2)
        self.wfile.write(content[start:half])
        if path in self.hub.held:
            self.hub.held[path].wait()
        for cuts, reset in ((self.hub.halves, False), (self.hub.resets, True)):
            if cuts.get(path, 0) > 0:
                cuts[path] -= 1
                self.break_off(reset)
                return
        self.wfile.write(content[half:])

    def break_off(self, reset: bool) -> None:
        """Ends the connection: in order, but too early; or with a reset, as a dying network does."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())  # close() would wait for the files made of it, and end in order
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def answer(self, status: int, headers: dict[str, object]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def refuse(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Length": 0}
        self.answer(status, headers if code is None else {**headers, "X-Error-Code": code})
