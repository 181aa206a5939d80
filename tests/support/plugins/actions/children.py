"""Children of the plugin by fork, subprocess and multiprocessing: what they do, and how they end.

A child by subprocess runs a program from a string, so that it does not import its parent's modules.
"""

import json
import logging
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

from actions import Call

logger = logging.getLogger(__name__)


def by(way: str, target: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process of multiprocessing. way: "fork", "spawn" or "forkserver"."""
    process: BaseProcess = getattr(multiprocessing.get_context(way), "Process")(target=target, args=arguments)  # noqa: B009
    process.start()
    return process


# Waits.


def try_to_wait_for_any(call: Call) -> list[str]:
    """The results of os.waitpid() and os.wait() while the plugin has no child."""
    said = []
    for wait in (lambda: os.waitpid(-1, os.WNOHANG), os.wait):
        try:
            said.append(f"there is {wait()}")
        except ChildProcessError:
            said.append("none")
    return said


def wait_for_any(call: Call) -> bool:
    """Start a child and wait for any child. Returns whether it was the same."""
    process = subprocess.Popen(["true"])
    return os.wait()[0] == process.pid


# Programs.

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def leave_asleep(call: Call) -> None:
    subprocess.Popen(SLEEP)


def wait_for_asleep(call: Call) -> None:
    subprocess.run(SLEEP, check=False)


def echo_to_stderr(call: Call, text: str) -> None:
    os.system(f"echo {text} >&2")


IMPORTS_AND_FAILS = "import goplugin; raise ValueError('of a child')"


def run_one_that_imports_goplugin_and_fails(call: Call) -> None:
    subprocess.run([sys.executable, "-c", IMPORTS_AND_FAILS], check=False)


BECOMES_SLEEP = "import os; os.write(1, b'\\n'); os.execvp('sleep', ['sleep', '60'])"


def start_one_that_becomes_sleep(call: Call) -> int:
    """The pid of a child that is about to become a program without any code of the plugin."""
    process = subprocess.Popen([sys.executable, "-c", BECOMES_SLEEP], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process.pid


WRITES_JSON = r"""
import os
os.write(2, b'{"@message": 1}\n{"@timestamp": {}}\n{"@level": 7, "@message": "m"}\n')
os.write(2, b'{"@level":"warn","@message":"of a child","@timestamp":"2026-01-02T03:04:05.000006Z"}\n')
"""


def run_one_that_writes_json(call: Call) -> None:
    subprocess.run([sys.executable, "-c", WRITES_JSON], check=True)


# Only children of the plugin know the token, by which the companion tells frames from text.
TOKENS = {
    "no token": "b''",
    "wrong token": f"b'{'0123456789abcdef' * 2} '",
    "right token": "''.join(part + ' ' for part in os.environ['GOPLUGIN_STDERR'].split(':')[2:]).encode()",
}
WRITES_FRAMES = r"""
import json, os, sys
frames, times, size = json.loads(sys.argv[1])
for _ in range(times):
    for frame in frames:
        os.write(2, b"\x1egoplugin:" + TOKEN + frame.encode() + b"x" * size + b"\n")
"""


def run_one_that_writes_frames(call: Call, token: str, frames: list[str], times: int, size: int) -> None:
    """Have a child write the frames to stderr, `times` times, with `size` more bytes after each."""
    program = WRITES_FRAMES.replace("TOKEN", TOKENS[token])
    subprocess.run([sys.executable, "-c", program, json.dumps([frames, times, size])], check=True)


# It writes 100 lines of 4,096 bytes. The child with the name a makes the pipe non-blocking.
MAKES_NOISE = r"""
import fcntl, os, select, sys
if sys.argv[1] == "a": fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | os.O_NONBLOCK)
lines = 100
while lines:
    try: os.write(2, sys.argv[1].encode() * 4095 + b"\n"); lines -= 1
    except BlockingIOError: select.select([], [2], [])
"""


def log_while_three_make_noise(call: Call) -> list[int]:
    """Log 100 records, longer than those lines, in each of two threads. Returns the exit codes of the children."""

    def log(name: str) -> None:
        for _ in range(100):
            logger.info("record %s", name * 20000)

    children = [subprocess.Popen([sys.executable, "-c", MAKES_NOISE, name]) for name in "abc"]
    threads = [threading.Thread(target=log, args=(name,)) for name in "de"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [child.wait() for child in children]


# Workers of multiprocessing.


def start_sleepers(call: Call, way: str) -> list[int]:
    """Start two workers, then a fork that inherits their parent's descriptors. Returns the pids, the fork's first."""
    workers = [by(way, time.sleep, 3600) for _ in range(2)]
    pid = os.fork()
    if pid == 0:
        os.closerange(0, 3)
        time.sleep(20)
        os._exit(0)
    return [pid, *(worker.pid or 0 for worker in workers)]


def start_one_that_holds_the_gil(call: Call, way: str) -> int:
    return by(way, re.match, "(a+)+$", "a" * 40 + "b").pid or 0


def work_by_other_programs() -> None:
    """Start two programs in a worker, and wait."""
    for preexec_fn in (None, int):
        subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=preexec_fn)  # noqa: PLW1509
    logger.warning("the worker has started them")
    time.sleep(3600)


def start_workers_that_start_programs(call: Call, ways: list[str]) -> list[int]:
    return [by(way, work_by_other_programs).pid or 0 for way in ways]


# Forks.


def fork_after_early(call: Call) -> int:
    """Fork; early.py of test_lifetime.py sends SIGTERM to the child at once. Returns how it ended."""
    os.environ["EARLY"] = "yes"
    pid = os.fork() or os._exit(0)
    return os.waitpid(pid, 0)[1]


def fail() -> None:
    raise ValueError


ENDS: dict[str, Callable[[], object]] = {
    "sys.exit(0)": lambda: sys.exit(0),
    "sys.exit(7)": lambda: sys.exit(7),
    "return": lambda: None,
    "raise ValueError": fail,
    "os._exit(5)": lambda: os._exit(5),
}


def fork_one_that_ends(call: Call, end: str) -> int | None:
    """The exit code of a fork, which returns or raises inside the handler."""
    pid = os.fork()
    if pid == 0:
        ENDS[end]()
        return None
    return os.waitpid(pid, 0)[1] >> 8


def fork_one_with_a_socket(call: Call) -> list[object]:
    """The fork's pid, and what it sent over a socket that it shares with the plugin."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.close(1)
        os.close(2)
        ours.close()
        theirs.sendall(b"the child has it")
        time.sleep(12)
        os._exit(0)
    theirs.close()
    return [pid, ours.recv(100).decode()]


# Forks of a fork. Other files have the descriptor numbers there that the host's pipes had in the plugin.


def in_a_fork(work: Callable[[], object]) -> int:
    """The exit code of a forked child that does the work."""
    process = by("fork", work)
    process.join(8)
    return -1 if process.exitcode is None else process.exitcode


def use_a_pool() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sys.exit(pool.map(abs, [-1, -2, -3]) != [1, 2, 3])


def open_files() -> list[int]:
    return [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]


def see(files: list[int]) -> None:
    """Raise OSError unless they are all open."""
    for file in files:
        os.fstat(file)


def use_multiprocessing() -> None:
    files = open_files()
    sys.exit(in_a_fork(lambda: see(files)))


def use_os_fork() -> None:
    files = open_files()
    pid = os.fork()
    if pid == 0:
        see(files)
        os._exit(0)
    os._exit(os.waitpid(pid, 0)[1] >> 8)


def use_preexec_fn_and_pass_fds() -> None:
    files = open_files()
    program = f"import os\nfor file in {files}: os.fstat(file)"
    run = subprocess.run([sys.executable, "-c", program], check=False, pass_fds=files, preexec_fn=int)
    sys.exit(run.returncode)


def use_three_generations() -> None:
    files = open_files()
    sys.exit(in_a_fork(lambda: sys.exit(in_a_fork(lambda: see(files)))))


IN_A_FORK = {
    "Pool": use_a_pool,
    "fork": use_multiprocessing,
    "os.fork": use_os_fork,
    "preexec_fn and pass_fds": use_preexec_fn_and_pass_fds,
    "three generations": use_three_generations,
}


def fork_in_a_fork(call: Call, kind: str) -> int:
    return in_a_fork(IN_A_FORK[kind])
