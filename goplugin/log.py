"""Writes `logging` records for the host's log: one hclog JSON object per line on the real stderr.

Mirrors the output of go-hclog, which plugins in Go use, and what go-plugin's log_entry.go and client.go (logStderr)
accept. The host panics if @message, @level or @timestamp is not a string. It takes the line for plain text if the
seconds of @timestamp do not have exactly six decimals, or the line is over 64 KiB. It knows "warn", but not "warning".
"""

import atexit
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

from goplugin.frames import LINE_LIMIT
from goplugin.state import STATE

LEVEL_VARIABLE = "PLUGIN_LOG_LEVEL"

# For a missing module. It names no package: the module grpc is in grpcio, so "pip install grpc" would be wrong.
ADVICE = f" (is it installed for {sys.executable}? pip install -r requirements.txt, or -e . with pyproject.toml, helps)"

_TRACE = 5
_LEVELS = {"trace": _TRACE, "debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING}
_LEVELS |= {"warning": logging.WARNING, "error": logging.ERROR, "off": logging.CRITICAL + 1}

_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# goplugin has its own loggers, because logging.config disables or redirects all loggers that it finds.
_root = logging.RootLogger(_TRACE)
_manager = logging.Manager(_root)


def get_logger(name: str) -> logging.Logger:
    """Return a logger of goplugin's. The plugin's logging configuration does not change it."""
    return _manager.getLogger(name)


def take_over() -> None:
    """From now on, write our own records and uncaught exceptions to the host's log."""
    send_to(HclogHandler())
    let_info_pass()
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    atexit.register(_log_exit_text)


def let_info_pass() -> None:
    """Set the root logger's level to info. Call it at import, so that a level set by the plugin's code stays."""
    if logging.root.level == logging.WARNING:  # as Python sets it
        logging.root.setLevel(logging.INFO)


def give_back() -> None:
    """Undo `take_over`."""
    _root.handlers.clear()
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    atexit.unregister(_log_exit_text)


def send_to(handler: logging.Handler) -> None:
    """Send goplugin's own records to this handler alone."""
    _root.handlers[:] = [handler]


def set_up(for_person: logging.Handler | None = None) -> None:
    """Send the plugin's `logging` records and warnings to the host's log.

    The environment variable PLUGIN_LOG_LEVEL sets the root logger's level: trace, debug, info, warn, error or off.
    Without it, a level that the plugin's code has set stays; the default is info.
    for_person: use this handler instead, for a person who runs the plugin by hand.
    """
    logging.addLevelName(_TRACE, "TRACE")
    handler = for_person or HclogHandler()
    if for_person:
        send_to(for_person)
    root = logging.root
    name = os.environ.get(LEVEL_VARIABLE)
    level = _LEVELS.get((name or "").strip().lower())
    if level is not None:
        root.setLevel(level)
        _root.setLevel(level)
    elif name:
        known = ", ".join(level for level in _LEVELS if level != "warning")
        get_logger("goplugin").warning("%s=%s is not a level (%s): ignored", LEVEL_VARIABLE, name, known)
    for other in root.handlers[:]:
        # logging.basicConfig() was called: the same records would arrive a second time, as plain text.
        if type(other) is logging.StreamHandler and other.stream in (sys.stdout, sys.stderr):
            root.removeHandler(other)
            handler.setLevel(other.level)
            handler.filters[:] = other.filters
    if not any(isinstance(other, HclogHandler) for other in root.handlers):
        root.addHandler(handler)
    logging.captureWarnings(True)


def exit_with(message: str) -> NoReturn:
    """End the process with exit code 1. message: what happened, and what to do.

    A host gets it as a record at error. If the handshake line was not printed yet, it also gets the first line on
    stdout, which it quotes in its own error. A person gets the text on stderr.
    """
    if STATE.standard_streams.host_stdout < 0:
        print(message, file=sys.stderr)
    else:
        get_logger("goplugin").error("%s", message)
        STATE.standard_streams.tell_host(message)
    if threading.current_thread() is not threading.main_thread():
        os._exit(1)  # SystemExit would end this thread alone
    STATE.failed = True
    raise SystemExit(1)


class HclogHandler(logging.Handler):
    """Writes each record as one line of hclog's JSON to the real stderr. Never raises."""

    def __init__(self, write: Callable[[bytes], None] = STATE.standard_streams.write_record) -> None:
        """write(line): takes each line, as bytes with its newline, instead of stderr."""
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, whatever it holds. Drop it if nobody reads the log."""
        try:
            line = hclog_line(record)
        except Exception as error:  # other code broke attributes that logging itself sets
            broken = logging.LogRecord("goplugin", logging.ERROR, "", 0, "no record: %s", (_repr(error),), None)
            line = hclog_line(broken)
        # Nobody reads the log of a plugin that outlived its host. The plugin must go on.
        with contextlib.suppress(OSError):
            self._write(line)


def hclog_line(record: logging.LogRecord) -> bytes:
    """Return the record as a line of hclog's JSON: ASCII, at most 64 KiB, whatever the record holds.

    Each key of the record's `extra` becomes a pair. An exception or a stack becomes the pair "stacktrace". A value that
    JSON cannot express becomes its repr(). If the line is too long, its longest texts are cut; each says by how much.
    """
    pairs: dict[str, Any] = {}
    try:
        message = record.getMessage()
    except Exception as error:  # arguments that do not fit the format, a __str__ that raises
        message = _repr(record.msg)
        pairs = {"args": _repr(record.args), "format_error": _repr(error)}
    # A pair named "@level" would replace the record's own. If it is not a string, the host would panic.
    extra = ((str(key), value) for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES)
    pairs |= {f"_{key}" if key.startswith("@") else key: value for key, value in extra}
    if record.exc_info:
        pairs["stacktrace"] = _traceback(record.exc_info)
    elif record.exc_text or record.stack_info:
        pairs["stacktrace"] = record.exc_text or record.stack_info
    own = {
        "@level": _level(record.levelno),
        "@message": message,
        "@module": str(record.name),
        "@timestamp": _timestamp(record.created),
    }
    return _fit({key: _json(value) for key, value in (own | pairs).items()}).encode("ascii")


def _level(levelno: int) -> str:
    return next((name for name in ("error", "warn", "info", "debug") if levelno >= _LEVELS[name]), "trace")


def _timestamp(seconds: float) -> str:
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{micro:06d}Z"


def _json(value: Any) -> str:
    """Return the value as JSON that the host can read. If JSON cannot express it, return its repr() as a string."""
    try:
        text = json.dumps(value, allow_nan=False)
    except Exception:  # a type unknown to JSON, NaN, a circle, a dict that another thread changes
        return json.dumps(_repr(value))
    # The host reads numbers as float64. It would change an id beyond 2**53, and reject a line that has 1e309 anywhere.
    if not isinstance(value, str) and ((type(value) is int and abs(value) > 2**53) or re.search(r"\d{300}", text)):
        return json.dumps(text)
    return text


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr() raises {type(error).__name__}>"


def _traceback(exc_info: Any) -> str:
    try:
        return "".join(traceback.format_exception(*exc_info)).rstrip()
    except Exception as error:  # an exception whose __str__ raises
        return f"{_repr(exc_info)}, whose traceback raises {type(error).__name__}"


def _fit(fields: dict[str, str]) -> str:
    """Return the fields, whose values are JSON already, as one line within the limit."""
    line, cut = _line(fields), fields.copy()
    longest = sorted(fields.keys() - {"@level", "@timestamp"}, key=lambda key: len(fields[key]), reverse=True)
    for key in longest[:10]:
        excess = len(line) - LINE_LIMIT
        if excess <= 0:
            return line
        text = json.loads(fields[key]) if fields[key].startswith('"') else fields[key]
        keep = min(len(text), LINE_LIMIT)
        while keep and len(json.dumps(text[:keep])) > len(fields[key]) - excess - 40:
            keep = keep * 9 // 10
        cut[key] = json.dumps(f"{text[:keep]}... ({len(text) - keep} characters cut)")
        line = _line(cut)
    if len(line) > LINE_LIMIT:  # not the values are too long: there are too many pairs, or their names are too long
        own = {key: value for key, value in fields.items() if key.startswith("@")}
        return _fit(own | {"pairs_cut": str(len(fields) - len(own))})
    return line


def _line(fields: dict[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in fields.items()) + "}\n"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Replaces sys.excepthook: this exception ends main()."""
    if not STATE.by_host or STATE.is_child():
        get_logger("goplugin").critical("uncaught exception in a child process", exc_info=(kind, error, trace))
        return
    if STATE.failed:
        return  # the exception was logged already
    STATE.failed = True
    text = _summary(kind, error) + ADVICE * isinstance(error, ModuleNotFoundError)
    get_logger("goplugin").critical("the plugin ends: %s", text, exc_info=(kind, error, trace))
    STATE.standard_streams.tell_host(text)


def _log_exit_text() -> None:
    """At exit: if sys.exit("text") ended main(), log the text that the interpreter printed."""
    text = STATE.standard_streams.exit_text.strip()
    if text and not STATE.failed and not STATE.is_child():
        STATE.failed = True
        get_logger("goplugin").error("the plugin ends: %s", text)
        STATE.standard_streams.tell_host(text)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        name = args.thread.name if args.thread else "(gone)"
        get_logger("goplugin").critical("uncaught exception in thread %s", name, exc_info=_exc_info(args))


def _log_unraisable(args: "sys.UnraisableHookArgs") -> None:
    where = f"{args.err_msg or 'exception ignored in'} {_repr(args.object)}"
    get_logger("goplugin").critical("%s: %s", where, args.exc_type.__name__, exc_info=_exc_info(args))


def _summary(kind: type[BaseException], error: BaseException) -> str:
    try:
        return f"{kind.__name__}: {error}"
    except Exception as raised:
        return f"{kind.__name__}, whose text raises {type(raised).__name__}"


def _exc_info(args: Any) -> Any:
    return args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
