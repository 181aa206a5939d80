"""Dials of a plugin on threads, and how they can fail."""

import inspect
import os
import signal
from pathlib import Path
from typing import Any

from actions import Call

kept: list[Any] = []


def dial_and_keep(call: Call, service_id: int) -> None:
    """Dial, and keep the channel for the next action."""
    kept[:] = [call.plugin.broker.dial(service_id)]


def call_what_was_dialled(call: Call) -> None:
    kept[0].unary_unary("/any.Service/Method")(b"", timeout=2)


def dial_without_the_companion(call: Call, service_id: int, companion: int) -> None:
    """Kill the companion and dial; a file says whether dial()'s docstring names what it raises."""
    documented = inspect.getdoc(call.plugin.broker.dial) or ""
    os.kill(companion, signal.SIGKILL)
    try:
        call.plugin.broker.dial(service_id)
        text = "it worked"
    except BaseException as error:  # noqa: BLE001
        named = [kind.__name__ for kind in type(error).__mro__ if kind.__name__ in documented]
        text = f"{type(error).__name__} is {'named' if named else 'not named'}"
    Path("half").write_text(text)
    Path("half").rename("dialled")
