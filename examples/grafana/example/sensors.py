"""An HTTP API with two sensors, to try out the data source: python example/sensors.py [PORT]."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "secret"  # noqa: S105 it guards nothing
SENSORS = {"cellar": "humidity", "kitchen": "celsius"}  # name and unit
MOST = 100_000  # values in one answer


def value(name: str, ms: int) -> float | None:
    """Return the sensor's value at this time. Every tenth second has no value."""
    second = ms // 1000
    return None if second % 10 == 7 else (second % 60) / 2 + len(name)


class Handler(BaseHTTPRequestHandler):
    """GET /sensors; GET /sensors/NAME, with start, end and step in ms."""

    def do_GET(self) -> None:
        """Answer in JSON."""
        url = urlsplit(self.path)
        status, answer = self.answer(url.path, dict(parse_qsl(url.query)))
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Return the HTTP status and the answer."""
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return 401, "the token is wrong"
        if path == "/sensors":
            return 200, [{"name": name, "unit": unit} for name, unit in SENSORS.items()]
        name = path.removeprefix("/sensors/")
        if name not in SENSORS:
            return 404, "there is no such sensor"
        if not query:
            now = int(time.time() * 1000)
            return 200, [[now, value(name, now)]]
        start, end, step = (int(query[key]) for key in ("start", "end", "step"))
        if step < 1 or (end - start) // step >= MOST:
            return 400, f"at most {MOST} values"
        return 200, [[ms, value(name, ms)] for ms in range(-(-start // step) * step, end + 1, step)]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class calls it so
        """Log nothing."""


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
