"""A small HTTP API that keeps notes in memory, to try out the provider: python example/server.py [PORT]."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TOKEN = "secret"  # noqa: S105 it guards nothing
MOST = 1000  # notes
LONGEST = 1_000_000  # bytes of a request
PAGE = 100  # names in one answer


class Server(ThreadingHTTPServer):
    """notes: the texts by path, such as {"/notes/hello": "text"}."""

    request_queue_size = 128  # connections that wait to be accepted; Terraform's -parallelism may be large

    def __init__(self, port: int) -> None:
        """port: 0 for any free port."""
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/notes"
        self.notes: dict[str, str] = {}
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """POST /FOLDER; GET /FOLDER, with prefix and after; GET, PUT and DELETE /FOLDER/NAME."""

    server: Server

    def do_GET(self) -> None:
        """Answer in JSON."""
        url = urlsplit(self.path)
        length = int(self.headers["Content-Length"] or 0)
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            status, answer = 401, "the token is wrong"
        elif length > LONGEST:
            status, answer = 413, f"at most {LONGEST} bytes"
        else:
            body = json.loads(self.rfile.read(length) or "{}")
            status, answer = self.answer(unquote(url.path), {**dict(parse_qsl(url.query)), **body})
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 http.server calls them so

    def answer(self, path: str, given: dict[str, str]) -> tuple[int, Any]:
        """Return the HTTP status and the answer. given: the parameters of query and body."""
        notes = self.server.notes
        with self.server.lock:
            if path.count("/") == 1:
                if self.command == "GET":
                    names = sorted(path_.rpartition("/")[2] for path_ in notes if path_.startswith(f"{path}/"))
                    names = [name for name in names if name.startswith(given.get("prefix", ""))]
                    names = [name for name in names if name > given.get("after", "")]
                    return 200, {"names": names[:PAGE], "after": names[PAGE - 1] if len(names) > PAGE else None}
                path = f"{path}/{given['name']}"
                if path in notes:
                    return 409, f"{given['name']} exists"
                if len(notes) >= MOST:
                    return 507, f"at most {MOST} notes"
                notes[path] = given["text"]
            if path not in notes:
                return 404, "there is no such note"
            if self.command == "PUT":
                notes[path] = given["text"]
            text = notes.pop(path) if self.command == "DELETE" else notes[path]
            return 200, {"name": path.rpartition("/")[2], "text": text}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class calls it so
        """Log nothing."""


if __name__ == "__main__":
    with Server(int(sys.argv[1]) if len(sys.argv) > 1 else 8000) as server:
        print(server.url, flush=True)
        server.serve_forever()
