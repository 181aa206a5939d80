"""Handlers that raise, use their context, or change the server's settings."""

import asyncio
import bdb
import sys
import threading
import time
from pathlib import Path

import grpc

from actions import Call

# Ways to end by an exception.


def raise_value_error(call: Call) -> None:
    raise ValueError("it broke")


def raise_without_a_text(call: Call) -> None:
    raise TimeoutError


def raise_without_a_text_or_arguments(call: Call) -> None:
    raise bdb.BdbQuit


def raise_a_surrogate(call: Call) -> None:
    raise ValueError("a\udc80")


def raise_system_exit(call: Call) -> None:
    raise SystemExit(3)


def exit_with_a_text(call: Call) -> None:
    sys.exit("no credentials")


def raise_keyboard_interrupt(call: Call) -> None:
    raise KeyboardInterrupt


def raise_cancelled_error(call: Call) -> None:
    raise asyncio.CancelledError("gone")


def set_code_and_raise(call: Call) -> None:
    call.context.set_code(grpc.StatusCode.DATA_LOSS)
    raise TimeoutError


def set_status_and_exit(call: Call) -> None:
    call.context.set_code(grpc.StatusCode.ABORTED)
    call.context.set_details("x")
    raise SystemExit


def set_details_and_raise(call: Call) -> None:
    call.context.set_details("our text")
    raise ValueError("it broke")


def abort(call: Call) -> None:
    call.context.abort(grpc.StatusCode.ABORTED, "not now")


def cancel(call: Call) -> None:
    call.context.cancel()


# Metadata.


def send_trailing_metadata(call: Call, size: int) -> None:
    call.context.set_trailing_metadata([("x-size", "m" * size)])


def send_metadata_back(call: Call) -> None:
    call.context.set_trailing_metadata([("back", dict(call.context.invocation_metadata())["there"])])


# A context's other methods.


def use_context(call: Call) -> threading.Event:
    """Use the context's methods while the call lives. Returns an event for its end."""
    assert call.context.is_active()
    assert call.context.time_remaining() < 6
    assert dict(call.context.invocation_metadata())["user-agent"].startswith("grpc-go")
    ended = threading.Event()
    assert call.context.add_callback(ended.set)
    call.context.send_initial_metadata([("a", "b")])
    assert isinstance(call.context, grpc.ServicerContext)
    return ended


def use_context_and_name_peer(call: Call) -> str:
    use_context(call)
    peer: str = call.context.peer()
    return peer


def notice_the_end(call: Call) -> None:
    use_context(call).wait(9)
    assert not call.context.is_active()
    assert not call.context.add_callback(print)
    Path("noticed").touch()


def raise_after_the_end(call: Call) -> None:
    use_context(call).wait(9)
    raise ValueError("nobody hears")


USES_AFTER_THE_END = {
    "peer": (),
    "auth_context": (),
    "abort": (grpc.StatusCode.ABORTED, ""),
    "write": (b"",),
}


def use_after_the_end(call: Call, method: str) -> None:
    """Call a method of a context whose call has ended. A file says that the context refused it."""
    use_context(call).wait(9)
    time.sleep(0.2)
    try:
        getattr(call.context, method)(*USES_AFTER_THE_END[method])
    except grpc.RpcError:
        Path(f"{method}-refused").touch()


# Settings.


def limit_threads(call: Call, number: int) -> None:
    """Limit the threads of handlers to this number."""
    for name, value in call.plugin.server_arguments.items():
        if "pool" in name:
            value._max = number
