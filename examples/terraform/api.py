"""A client of the HTTP API that the provider manages. Put your own service's client here."""

import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

_log = logging.getLogger(__name__)
BUSY = {429, 503}  # the API has done nothing: try again


class APIError(Exception):
    """An error with a text for the user. status: the HTTP status; 0 if there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class API:
    """The notes at a URL. Handlers use it at the same time, so each call makes its own connection."""

    def __init__(self, url: str, token: str, timeout: float, stopping: threading.Event) -> None:
        """timeout: seconds for a call with all its retries. stopping: once it is set, calls do not retry."""
        self.url, self.token, self.timeout, self.stopping = url.rstrip("/"), token, timeout, stopping

    def names(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with the prefix. The API returns them in pages."""
        query = {"prefix": prefix}
        while True:
            page = self._call("GET", f"?{urllib.parse.urlencode(query)}")
            yield from page["names"]
            if not page["after"]:
                return
            query["after"] = page["after"]

    def create(self, name: str, text: str) -> None:
        """Create a note. APIError if the name exists."""
        self._call("POST", "", {"name": name, "text": text})

    def read(self, name: str) -> str | None:
        """Return the text; None if there is no such note."""
        try:
            return str(self._call("GET", self._path(name))["text"])
        except APIError as error:
            if error.status == 404:
                return None
            raise

    def update(self, name: str, text: str) -> None:
        """Replace the text."""
        self._call("PUT", self._path(name), {"text": text})

    def delete(self, name: str) -> None:
        """Remove the note. It is not an error if the note is gone already."""
        try:
            self._call("DELETE", self._path(name))
        except APIError as error:
            if error.status != 404:
                raise

    @staticmethod
    def _path(name: str) -> str:
        return f"/{urllib.parse.quote(name, safe='')}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer. Retry while the API is busy and there is time."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)  # noqa: S310 it is http or https
        request.add_header("Content-Type", "application/json")
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")  # not sent after a redirect
        asked = f"{method} {request.full_url}"
        deadline, pause = time.monotonic() + self.timeout, 0.5
        while True:
            try:
                with urllib.request.urlopen(request, timeout=max(deadline - time.monotonic(), 0.1)) as answer:  # noqa: S310
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(500).decode(errors="replace")
                message = f"{asked} was answered with {error.code} {error.reason}: {said}"
                if error.code not in BUSY:
                    raise APIError(message, error.code) from None
                after = error.headers.get("Retry-After", "")
                # A random pause: otherwise all callers that were refused together would come back together.
                wait = max(float(after), 0.1) if after.isdecimal() else pause * random.uniform(0.5, 1)
                pause *= 2
                if wait > deadline - time.monotonic():
                    raise APIError(f"{message} The timeout is {self.timeout:g} s.", error.code) from None
                _log.info("the API is busy", extra={"asked": asked, "status": error.code, "seconds": wait})
                if self.stopping.wait(wait):
                    raise APIError(f"{asked}: told to stop while the API was busy; it did nothing.") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                done = "" if method == "GET" else " The API may have done it all the same."
                raise APIError(f"{asked} failed: {error} (the timeout is {self.timeout:g} s).{done}") from None
