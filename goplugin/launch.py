"""Finds out who started this process. For a host, takes over stdout and starts the companion before `import grpc`."""

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
    """Ignore Ctrl-C and SIGPIPE.

    Ctrl-C reaches host and plugin alike, and the host decides. A handler ignores it: children would inherit SIG_IGN.
    SIGPIPE comes when the host leaves during a write. `python` itself ignores it, but cx_Freeze's programs do not.
    """
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


if "PLUGIN_MIN_PORT" in os.environ:  # every host sets it
    _ignore_signals()  # before the next import, which may be slow on a cold disk

from goplugin import environment, log
from goplugin.address import Address
from goplugin.companion import Companion, system
from goplugin.handshake import HandshakeConfig
from goplugin.standard_streams import write_all
from goplugin.state import DEBUG, STATE

_STDERR = "GOPLUGIN_STDERR"  # this variable lets a child recognize the pipe to the companion


def take_over() -> None:
    """Become a host's plugin: take over this process's output and its end, and start the companion."""
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
    start_companion()  # it makes the certificate while we import the rest


def start_companion() -> None:
    """Start the companion, and send stderr to it if a host started us. Exits if the system refuses."""
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
    """Complete the companion's start, which ran while we imported. Exits if the companion has died."""
    with contextlib.suppress(OSError):
        if not STATE.companion.has_died():
            STATE.companion.connect()
            return
    companion_died()


def companion_died() -> str:
    """Log once that the companion died, and return the reason to leave. Without a goplugin.Plugin, exit at once."""
    companion, reason = STATE.companion, "the companion process died"
    if not companion.died:
        companion.died = True
        companion.remove_folder()
        if STATE.by_host:
            log.send_to(log.HclogHandler(functools.partial(write_all, STATE.standard_streams.host_stderr)))
        log.get_logger("goplugin").error("%s; the connection to the host is lost; the plugin exits", reason)
        STATE.standard_streams.tell_host(reason)
    if not STATE.plugin:
        os._exit(1)
    return reason


def _check_companion() -> bool:
    """Whether nobody reads our stderr because the companion died. The plugin may have replaced stderr's pipe."""
    return STATE.companion.has_died() and bool(companion_died())


def release() -> None:
    """Undo `take_over`: this process inherited a host's variables, but it is not a plugin."""
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
    """Return True if a host started this process, False if a person did with --debug. Otherwise exit with a message."""
    key, value = config.magic_cookie_key, config.magic_cookie_value
    found = os.environ.get(key)
    if found == value and (STATE.by_host or DEBUG not in sys.argv):
        del os.environ[key]  # a child must not take itself for the plugin
        if not STATE.by_host:  # a person has set only the cookie, to see the handshake line
            take_over()
        return True
    if DEBUG in sys.argv and not STATE.by_host:
        return False
    if STATE.variables:
        log.exit_with(
            f"This plugin does not fit its host: HANDSHAKE expects {key}={value} in the environment, but"
            f" {key} is {'not set' if found is None else repr(found)}."
            " Copy magic_cookie_key and magic_cookie_value from the host's source or documentation."
        )
    return _exit_by_hand(key, usage)


def _exit_by_hand(key: str, usage: str | None) -> NoReturn:
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    unknown = next((option for option in options if option not in ("-h", "--help")), "")
    if unknown:
        log.exit_with(f"Unknown option {unknown}. Started by hand, this plugin has only the option {DEBUG} [NAME].")
    log.exit_with(
        "This is a go-plugin plugin; its host starts it.\n"
        f"Started by hand (without the host's {key}) it does nothing.\n"
        f"With {DEBUG} it waits for a host to attach.\n"
        f"\n{(usage or '').strip()}"
    )


def reattach_config(version: int, address: Address) -> str:
    """Return the JSON with which a host attaches to this process, in the form of Terraform's TF_REATTACH_PROVIDERS."""
    after = sys.argv[sys.argv.index(DEBUG) + 1 :]
    config = {
        "Protocol": "grpc",
        "ProtocolVersion": version,
        "Pid": os.getpid(),
        # Tells the host not to end the plugin. Terraform ignores ProtocolVersion without it.
        "Test": True,
        "Addr": {"Network": address.network, "String": address.address},
    }
    name = after[0] if after else os.path.splitext(os.path.basename(sys.argv[0]))[0]
    return json.dumps({name: config}, separators=(",", ":"))


def _check_plugin() -> None:
    """At exit: tell the host if the script never created a goplugin.Plugin."""
    if not (STATE.plugin or STATE.failed or STATE.standard_streams.exit_text or STATE.is_child()):
        message = "the script ended without goplugin.Plugin(HANDSHAKE): does it call main()?"
        log.get_logger("goplugin").error("%s", message)
        STATE.standard_streams.tell_host(message)


def _end_companion() -> None:
    if STATE.companion and not STATE.is_child():
        STATE.companion.end()


def _leave_to_parent() -> None:
    """In a child by fork without exec: leave output, the companion and the host's connections to the plugin."""
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
    """In a child by fork: close the pipes by which other workers notice the parent's end."""
    process: Any = sys.modules.get("multiprocessing.process")
    with contextlib.suppress(AttributeError, OSError):  # these parts of Python are private
        while process and process._children:
            worker = process._children.pop()
            for fd in worker._popen.finalizer._args:
                os.close(fd)
            worker._popen.finalizer.cancel()  # it would close these numbers again, which other files may have by then


def _register_worker() -> None:
    """If multiprocessing started this process, end it with its parent. The same for its own child processes."""
    if sys.platform == "darwin":  # macOS ignores SIGIO by default
        with contextlib.suppress(ValueError):  # this is not the main thread
            signal.signal(signal.SIGIO, lambda signum, frame: os._exit(1))
    if "--multiprocessing-fork" in sys.orig_argv and not STATE.is_child():  # spawn runs no hooks
        threading.Thread(target=_end_with_parent, daemon=True).start()
    elif util := sys.modules.get("multiprocessing.util"):
        util.register_after_fork(STATE, _end_with_parent)


def _end_with_parent(*_: object) -> None:
    """End this process when its parent has ended. Where SIGIO exists it does that: it ends C code, too."""
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
    # This is a child of a plugin, such as a worker of multiprocessing. It logs as the plugin does.
    log.take_over()
    log.set_up()
    _register_worker()
    _watch_forks()

if sys.platform == "win32" and system.VARIABLE in os.environ:
    system.serve(STATE, os.environ[system.VARIABLE])
elif STATE.by_host:
    # Imports leave no garbage. The search for it would take a twentieth of the start.
    gc.disable()
    take_over()
elif DEBUG in sys.argv:
    log.let_info_pass()

# The plugin's code may fork. grpc's own support for forks can crash the child, and it logs each fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
