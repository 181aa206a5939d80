"""Takes Unix sockets away from Python, as on Windows: on PYTHONPATH, it runs at Python's start."""

import socket

_pair, _unix = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda: _pair(_unix)  # type: ignore[assignment,misc]
del socket.AF_UNIX
