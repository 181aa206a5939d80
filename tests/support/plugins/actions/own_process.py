"""What a handler does to its own process: descriptors, limits, exit handlers, garbage, and its end."""

import _thread
import atexit
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from actions import Call

logger = logging.getLogger(__name__)

# Descriptors.


def close_3_to_5(call: Call) -> None:
    """Close them as old daemons did."""
    os.closerange(3, 6)


def close_all(call: Call) -> None:
    os.closerange(3, 256)


def close_pipes(call: Call) -> None:
    """Close all socket pairs, and all pipes but stdin, stdout and stderr."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            is_pipe = os.readlink(f"/proc/self/fd/{name}").startswith("pipe:")
            if not is_pipe:  # the sockets of a pair have no names
                with socket.socket(fileno=os.dup(int(name))) as pair:
                    is_pipe = pair.getsockname() == pair.getpeername() == ""
            if is_pipe and int(name) > 2:
                os.close(int(name))


kept: list[Any] = []


def open_files_in_place_of_pipes(call: Call) -> None:
    close_pipes(call)
    kept.extend(open("/etc/hosts") for _ in range(20))  # noqa: SIM115


def log_into_a_pipe_that_nobody_reads(call: Call) -> str:
    before = os.dup(2)
    read, write = os.pipe()
    os.dup2(write, 2)
    os.close(read)
    os.close(write)
    logger.error("into a pipe that nobody reads")
    os.dup2(before, 2)
    os.close(before)
    return "it went on"


# Limits.


def write_no_core_file(call: Call) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def use_up_the_threads(call: Call) -> str:
    """Use up the limit of threads. Returns Python's error for the next one."""
    import resource  # not on Windows

    os.setuid(65534)  # root has no such limit
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=print).start()
    except RuntimeError as error:
        return str(error)
    return "it started"


def hold_the_gil(call: Call) -> None:
    """Hold it until the process is killed: C code searches for a match, and no signal interrupts it."""
    re.match(r"(a+)+$", "a" * 40 + "b")


# Output.


def print_at_exit(call: Call) -> None:
    atexit.register(print, "good", "bye", file=sys.stderr)
    atexit.register(print, "and thanks")


def write_at_exit(call: Call) -> None:
    atexit.register(sys.stderr.write, "good bye\n")
    atexit.register(print, "and thanks")


def write_in_a_thread_without_python_code(call: Call) -> None:
    """Write as a C library that calls a Python function in its own thread."""
    _thread.start_new_thread(sys.stderr.write, ("some words\n",))


class Garbage:
    """An object that refers to itself, so that only a collection frees it; then it prints."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        print("collected")


def print_while_garbage_prints(call: Call, times: int) -> None:
    before = gc.get_threshold()
    try:
        for number in range(times):
            Garbage()
            gc.set_threshold(1 + number % 50, 1000, 1000)
            print(f"kept {number:0200}\n", end="")
    finally:
        gc.set_threshold(*before)


# Ends.

ENDS: dict[str, Callable[[], object]] = {
    "os._exit": lambda: os._exit(3),
    "os.abort": os.abort,
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "a null pointer": lambda: ctypes.string_at(0),
}


def end_with_last_words(call: Call, words: str, end: str) -> None:
    write_no_core_file(call)
    faulthandler.enable()
    logger.error("%s%s", words, "x" * 50000)
    os.write(2, f"{words} unfinished".encode())
    ENDS[end]()
