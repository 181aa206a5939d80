"""The few things that must happen before `import grpc` and the plugin's own imports: stdout now belongs to the host."""

import gc
import os
import signal
import sys

from goplugin import environment

DEBUG = "--debug"  # the argument by which a person starts the plugin and lets hosts attach

_STDERR = "GOPLUGIN_STDERR"  # by this variable a child knows the pipe to the companion

variables = environment.take(os.environ)
_by_host = bool(variables) and DEBUG not in sys.argv


def _ignore_signals() -> None:
    """Ignore Ctrl-C, which reaches host and plugin alike. Not by SIG_IGN, because children would inherit that.

    And SIGPIPE, which comes when a host leaves in the middle: `python` ignores it, but not what cx_Freeze makes.
    """
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


if _by_host:
    _ignore_signals()  # before the next import, which may be slow on a cold disk

from goplugin import hostwatch, log, outputs
from goplugin.companion import Companion, is_possible

gc_was_enabled = gc.isenabled()
settings = environment.Environment()  # parsed, once this process has been taken over for the host
companion: Companion | None = None
pid = os.getpid()
parent = os.getppid()  # the process that started us, asked before it has a reason to leave
refused = ""  # why there is no companion, if there should be one
grpc_came_first = False  # grpc was imported before goplugin


def take_over() -> None:
    """Take this process's output and its end into our hands, as a host expects of its plugin."""
    global settings, grpc_came_first
    _ignore_signals()
    outputs.take()
    log.take_over()
    if hostwatch.is_orphan():
        log.exit_with("The process that started this plugin ended before `import goplugin`: import goplugin first.")
    try:
        settings = environment.parse(variables)
    except ValueError as error:
        log.exit_with(f"This plugin cannot start: {error}")
    grpc_came_first = "grpc" in sys.modules
    start_companion()  # which makes the certificate while we import the rest


def start_companion() -> None:
    """Start the companion, if there is none and the system allows it."""
    global companion, refused
    if companion:
        return
    if not is_possible():
        refused = "this system has no fork or no Unix sockets"
        return
    try:
        companion = Companion(settings, parent)
    except OSError as error:
        refused = f"the system refused to start one: {error}"
    os.register_at_fork(after_in_child=outputs.leave_to_parent)
    if companion and outputs.host_stdout >= 0:
        os.environ[_STDERR] = outputs.stderr_name()
        os.register_at_fork(after_in_child=_announce_worker)


def socket_path() -> str:
    """Return a path for a Unix socket that only our user can reach. OSError if that is not possible."""
    if not companion:
        raise OSError(
            "TCP does not work here, and a Unix socket needs the companion process, which removes it in the end"
        )
    return str(companion.ask("path"))


def _announce_worker() -> None:
    """In a child: if multiprocessing has started it, let it end with the plugin."""
    if "--multiprocessing-fork" in sys.orig_argv:  # by spawn
        outputs.announce_worker()
    elif util := sys.modules.get("multiprocessing.util"):  # by fork or forkserver, if at all: it calls this then
        util.register_after_fork(outputs, lambda _: outputs.announce_worker())


if not _by_host and outputs.join_plugin(os.environ.get(_STDERR, "")):
    # A child of a plugin, such as a worker of multiprocessing: it logs as the plugin does, and ends with it.
    log.take_over()
    log.set_up()
    _announce_worker()
    os.register_at_fork(after_in_child=_announce_worker)

if _by_host:
    # Nothing that is imported is garbage: looking for some would take a twentieth of the start.
    gc.disable()
    take_over()

# The plugin's code may fork without further ado; grpc's own support for that can crash the child, and logs each one.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
