"""Removes Unix sockets from Python, as on Windows. On PYTHONPATH, this file runs when Python starts."""

import socket

_pair, _unix = socket.socketpair, socket.AF_UNIX
socket.socketpair = lambda: _pair(_unix)  # type: ignore[assignment,misc]
del socket.AF_UNIX
