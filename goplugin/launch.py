"""Who started this process, and what follows from that before `import grpc`: stdout now belongs to the host."""

import atexit
import contextlib
import functools
import gc
import json
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn


def _ignore_signals() -> None:
    """Ignore Ctrl-C, which reaches host and plugin alike. Not by SIG_IGN, because children would inherit that.

    Ignore SIGPIPE, sent when a host leaves during a write: `python` does so itself, cx_Freeze's programs do not.
    """
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


if "PLUGIN_MIN_PORT" in os.environ:  # as every host sets it
    _ignore_signals()  # before the next import, which may be slow on a cold disk

from goplugin import environment, log
from goplugin.address import Address
from goplugin.companion import Companion, system
from goplugin.handshake import HandshakeConfig
from goplugin.standard_streams import write_all
from goplugin.state import DEBUG, STATE

_STDERR = "GOPLUGIN_STDERR"  # by this variable a child knows the pipe to the companion


def take_over() -> None:
    """Take this process's output and its end into our hands, as a host expects of its plugin."""
    STATE.by_host = True
    _ignore_signals()
    STATE.standard_streams.take()
    atexit.register(_end_companion)  # first: exit handlers run in reverse order
    atexit.register(_check_plugin)
    log.take_over()
    if system.is_orphan():
        log.exit_with("The process that started this plugin ended before `import goplugin`: import goplugin first.")
    try:
        STATE.settings = environment.parse(STATE.variables)
    except ValueError as error:
        log.exit_with(f"This plugin cannot start: {error}")
    start_companion()  # which makes the certificate while we import the rest


def start_companion() -> None:
    """Start the companion. Exits if the system refuses. With --debug, output stays as it is."""
    try:
        STATE.companion = companion = Companion(STATE)
    except OSError as error:
        log.exit_with(f"This plugin cannot start its companion process: {error}")
    _watch_forks()
    if STATE.by_host:
        STATE.standard_streams.send_stderr_to(companion.stderr, companion.mark, _check_companion)
        os.environ[_STDERR] = STATE.standard_streams.name()
    os.close(companion.stderr)


def connect_companion() -> None:
    """Complete its start, which ran beside our imports. Exits if it has died."""
    with contextlib.suppress(OSError):
        if not STATE.companion.has_died():
            STATE.companion.connect()
            return
    companion_died()


def companion_died() -> str:
    """Log this, once; return the reason to leave. If there is no goplugin.Plugin yet to do so, exit at once."""
    companion, reason = STATE.companion, "the companion process died"
    if not companion.died:
        companion.died = True
        companion.remove_folder()
        if STATE.by_host:
            log.send_to(log.HclogHandler(functools.partial(write_all, STATE.standard_streams.host_stderr)))
        log.get_logger("goplugin").error("%s; the connection to the host is lost: the plugin leaves", reason)
        STATE.standard_streams.tell_host(reason)
    if not STATE.plugin:
        os._exit(1)
    return reason


def _check_companion() -> bool:
    """When nobody reads our stderr: whether the companion died. It may be a pipe of the plugin's own by then."""
    return STATE.companion.has_died() and bool(companion_died())


def release() -> None:
    """Undo `take_over`: this process is not a plugin, although it inherited a host's variables."""
    if STATE.companion and not STATE.plugin and not STATE.is_child():
        STATE.by_host = False
        STATE.standard_streams.give_back()
        log.give_back()
        atexit.unregister(_end_companion)
        atexit.unregister(_check_plugin)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        del os.environ[_STDERR]
        STATE.companion.connect()
        STATE.companion.end()
        STATE.companion.close()
        STATE.companion = None


def started_by_host(config: HandshakeConfig, usage: str | None) -> bool:
    """Whether a host started this process; False if a person did, with --debug. Exits if neither is so."""
    key, value = config.magic_cookie_key, config.magic_cookie_value
    found = os.environ.get(key)
    if found == value and (STATE.by_host or DEBUG not in sys.argv):
        del os.environ[key]  # a child must not take itself for the plugin
        if not STATE.by_host:  # a person, who sets the cookie alone to see the line
            take_over()
        return True
    if DEBUG in sys.argv and not STATE.by_host:
        return False
    if STATE.variables:
        log.exit_with(
            f"This plugin and its host do not fit: HANDSHAKE expects {key}={value} in the environment, but"
            f" {key} is {'not set' if found is None else repr(found)}."
            " Copy magic_cookie_key and magic_cookie_value from the host's source or documentation."
        )
    return _exit_by_hand(key, usage)


def _exit_by_hand(key: str, usage: str | None) -> NoReturn:
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = next((option for option in options if option not in ("-h", "--help")), "")
    if unknown:
        log.exit_with(f"Unknown option {unknown}. Started by hand, this plugin knows {DEBUG} [NAME] alone.")
    log.exit_with(
        "This is a go-plugin plugin; its host starts it.\n"
        f"Started by hand ({key} is not set as that host sets it) it does nothing, but\n"
        f"with {DEBUG} it waits for a host to attach.\n"
        f"\n{(usage or '').strip()}"
    )


def reattach_config(version: int, address: Address) -> str:
    """Return what a host needs to attach to this process: JSON in the form of Terraform's TF_REATTACH_PROVIDERS."""
    after = sys.argv[sys.argv.index(DEBUG) + 1 :]
    config = {
        "Protocol": "grpc",
        "ProtocolVersion": version,
        "Pid": os.getpid(),
        # The host must not end the plugin, and Terraform must take ProtocolVersion for what it is.
        "Test": True,
        "Addr": {"Network": address.network, "String": address.address},
    }
    name = after[0] if after else os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return json.dumps({name: config}, separators=(",", ":"))


def _check_plugin() -> None:
    """At exit: the script may have forgotten goplugin.Plugin."""
    if not (STATE.plugin or STATE.failed or STATE.standard_streams.exit_text or STATE.is_child()):
        message = "the script has ended without goplugin.Plugin(HANDSHAKE): does it run main()?"
        log.get_logger("goplugin").error("%s", message)
        STATE.standard_streams.tell_host(message)


def _end_companion() -> None:
    if STATE.companion and not STATE.is_child():
        STATE.companion.end()


def _leave_to_parent() -> None:
    """In a child by fork without exec: output, the companion and the host's connections are the plugin's."""
    _close_sentinels()
    _register_worker()
    if STATE.companion:
        STATE.standard_streams.leave_to_parent()
        STATE.companion.close()
        STATE.companion = None
        if STATE.plugin:
            STATE.plugin.leave_to_parent()


def _watch_forks() -> None:
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=_leave_to_parent)


def _close_sentinels() -> None:
    """In a child by fork: close the pipes that tell other workers of the parent's end."""
    process: Any = sys.modules.get("multiprocessing.process")
    with contextlib.suppress(AttributeError, OSError):  # these parts of Python are private
        while process and process._children:
            worker = process._children.pop()
            for fd in worker._popen.finalizer._args:
                os.close(fd)
            worker._popen.finalizer.cancel()  # it would close the numbers again, as other files


def _register_worker() -> None:
    """Have this process end with its parent if multiprocessing started it, and likewise its child processes."""
    if sys.platform == "darwin":  # it ignores SIGIO by default
        with contextlib.suppress(ValueError):  # this is not the main thread
            signal.signal(signal.SIGIO, lambda signum, frame: os._exit(1))
    if "--multiprocessing-fork" in sys.orig_argv and not STATE.is_child():  # by spawn, which calls nothing
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif util := sys.modules.get("multiprocessing.util"):
        util.register_after_fork(STATE, _end_with_parent)


def _end_with_parent(*_: object) -> None:
    """End this process when its parent has ended. By SIGIO, if there is such: it ends C code, too."""
    import multiprocessing

    parent: Any = None
    while not (parent := multiprocessing.parent_process()):
        time.sleep(0.001)  # still unpickling
    if sys.platform == "win32":
        parent.join()
    else:
        import fcntl

        fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if not parent.is_alive():
        os._exit(1)


if not STATE.by_host and STATE.standard_streams.join(os.environ.get(_STDERR, "")):
    # A child of a plugin, such as a worker of multiprocessing: it logs as the plugin does.
    log.take_over()
    log.set_up()
    _register_worker()
    _watch_forks()

if sys.platform == "win32" and system.VARIABLE in os.environ:
    system.serve(STATE, os.environ[system.VARIABLE])
elif STATE.by_host:
    # Nothing that is imported is garbage: looking for some would take a twentieth of the start.
    gc.disable()
    take_over()
elif DEBUG in sys.argv:
    log.let_info_pass()

# The plugin's code may fork. grpc's own support for forks can crash the child, and logs each fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
