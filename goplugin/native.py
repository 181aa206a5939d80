"""Adapts pygrpc-native, a faster server with grpcio's API (see docs/guide.md). No other module knows about it."""

import contextlib
import os
from typing import Any

from goplugin import log
from goplugin.interceptor import ALWAYS, Interceptor
from goplugin.state import STATE

_log = log.get_logger("goplugin")


def adapt(server: Any, interceptor: Interceptor) -> None:
    """Prepare a server of that library. Do nothing for servers of grpcio."""
    library = type(server).__module__.split(".")[0]
    if library == "grpc":
        return
    import tempfile

    start = server.start

    def start_in_folder() -> None:
        """Let the library put its files into the companion's folder: it is removed however the plugin ends."""
        folder, before = "", tempfile.tempdir
        with contextlib.suppress(OSError, ValueError):  # the companion has no folder
            folder = os.path.dirname(STATE.companion.path()) if STATE.companion else ""
        if 0 < len(folder) <= 60:  # leaves room for the name of the library's socket
            tempfile.tempdir = folder
        try:
            start()
        finally:
            tempfile.tempdir = before

    def warn(handler_call_details: Any, handler: Any) -> None:
        """Log that grpcio handles the method, although the library could if the code were generated again."""
        method = handler_call_details.method
        by_grpcio = type(handler_call_details).__module__.startswith("grpc.")
        if by_grpcio and not handler.request_streaming and not method.startswith((*ALWAYS, "/plugin.")):
            _log.warning(
                "%s gains nothing from %s: generate its code again, with grpcio-tools 1.64 or newer (make protos)",
                method,
                library,
            )

    server.start, interceptor.on_method = start_in_folder, warn
