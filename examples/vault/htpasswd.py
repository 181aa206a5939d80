"""A password file as nginx and Apache read it for basic authentication. In your plugin: your service's client."""

import base64
import hashlib
import os
import shutil
import threading
from pathlib import Path

# For all mounts in this process. Only one process may write a file: so do not let two plugins have the same.
_lock = threading.Lock()


class Htpasswd:
    """One file; it need not be there yet."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def add(self, name: str, password: str) -> None:
        """Add an account."""
        # SHA-1 is the one hash that both servers know on all systems. For passwords of people it is too fast to be
        # safe, but these are random, 192 bits.
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
        with _lock:
            self._write([*self._others(name), f"{name}:{{SHA}}{base64.b64encode(digest).decode()}\n"])

    def remove(self, name: str) -> None:
        """Remove an account, if it is there."""
        with _lock:
            self._write(self._others(name))

    def _others(self, name: str) -> list[str]:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        return [line for line in lines if line.partition(":")[0] != name]

    def _write(self, lines: list[str]) -> None:
        """Replace the file in one step: a server never reads half of it, even if this process is killed."""
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text("".join(lines), encoding="utf-8")
        if self.path.exists():
            shutil.copymode(self.path, new)
        os.replace(new, self.path)
