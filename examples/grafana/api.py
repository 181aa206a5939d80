"""A client of the HTTP API that the data source reads. Put your own service's client here."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import backend_pb2 as pb


class APIError(Exception):
    """An error with a text for the user. status: an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class API:
    """The sensors of one data source. Grafana sends its settings, with decrypted secrets, in each call.

    If your client is expensive to make, keep one for each `uid` until `lastUpdatedMS` changes.
    """

    def __init__(self, settings: pb.DataSourceInstanceSettings) -> None:
        """APIError if a setting is missing or wrong."""
        self.url = settings.url.rstrip("/")
        self.token = settings.decryptedSecureJsonData.get("token", "")
        if not self.url.startswith(("http://", "https://")) or not self.token:
            raise APIError(400, "Set the URL and the token in the data source's settings")
        try:
            self.timeout = float(json.loads(settings.jsonData or "{}").get("timeout", 10))  # seconds
        except (ValueError, TypeError, AttributeError):
            raise APIError(400, "timeout in the data source's settings must be a number of seconds") from None

    def sensors(self) -> list[dict[str, str]]:
        """Return all sensors, each with its `name` and `unit`."""
        return list(self._get("sensors"))

    def sensor(self, name: str) -> dict[str, str]:
        """Return one sensor. APIError 404 if it does not exist."""
        for sensor in self.sensors():
            if sensor["name"] == name:
                return sensor
        raise APIError(404, f"There is no sensor {name!r}")

    def values(self, name: str, **range_ms: int) -> list[list[Any]]:
        """Return [time in ms, value or None] for each `step` from `start` to `end`; without these, the latest value."""
        query = urllib.parse.urlencode(range_ms)
        return list(self._get(f"sensors/{urllib.parse.quote(name, safe='')}?{query}"))

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.url}/{path}")  # noqa: S310 it is http or https
        request.add_unredirected_header("Authorization", f"Bearer {self.token}")  # not sent after a redirect
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise APIError(error.code, f"{self.url} answered {error.code} {error.reason}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise APIError(502, f"{self.url} does not work: {error}") from None
