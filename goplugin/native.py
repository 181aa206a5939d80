"""What pygrpc-native needs, a faster server with grpcio's API (see docs/guide.md). Nothing else here knows it."""

import contextlib
import os
from typing import Any

from goplugin import log
from goplugin.interceptor import ALWAYS, Interceptor
from goplugin.state import STATE

_log = log.get_logger("goplugin")


def adapt(server: Any, interceptor: Interceptor) -> None:
    """Prepare a server of that library; leave others alone."""
    library = type(server).__module__.split(".")[0]
    if library == "grpc":
        return
    import tempfile

    start = server.start

    def start_in_folder() -> None:
        """Have the library's temporary files go with the companion's, however the plugin ends."""
        folder, before = "", tempfile.tempdir
        with contextlib.suppress(OSError, ValueError):  # the companion has no folder
            folder = os.path.dirname(STATE.companion.path()) if STATE.companion else ""
        if 0 < len(folder) <= 60:  # the library's socket must fit behind it
            tempfile.tempdir = folder
        try:
            start()
        finally:
            tempfile.tempdir = before

    def warn(handler_call_details: Any, handler: Any) -> None:
        """Log that grpcio handles the method, though the library could if its code were generated anew."""
        method = handler_call_details.method
        by_grpcio = type(handler_call_details).__module__.startswith("grpc.")
        if by_grpcio and not handler.request_streaming and not method.startswith((*ALWAYS, "/plugin.")):
            _log.warning(
                "%s gains nothing from %s: generate its code anew, by grpcio-tools 1.64 or newer (make protos)",
                method,
                library,
            )

    server.start, interceptor.on_method = start_in_folder, warn
