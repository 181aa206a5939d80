"""Runs the plugin at KV_PLUGIN, and stops it by SIGSTOP when it has written half of a long value."""

import builtins
import io
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any

LONG = 1_000_000  # bytes

really_open = open


class StopsMidway(io.FileIO):
    def write(self, data: Any) -> int:
        if len(data) < LONG:
            return super().write(data)
        half = super().write(memoryview(data)[: len(data) // 2])
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread stops at once, and then all others
        return half + super().write(memoryview(data)[half:])


def open_to_stop(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
    return StopsMidway(file, mode) if mode in ("wb", "xb") else really_open(file, mode, *args, **options)


builtins.open = io.open = open_to_stop  # pathlib uses io.open
sys.path.insert(0, str(Path(os.environ["KV_PLUGIN"]).parent))
runpy.run_path(os.environ["KV_PLUGIN"], run_name="__main__")
