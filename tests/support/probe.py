"""Calls of the probe plugin: see tests/support/plugins/probe_plugin.py."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import PLUGINS, Host, World

if TYPE_CHECKING:
    from actions import Call
    from typing_extensions import TypeVarTuple, Unpack

    Arguments = TypeVarTuple("Arguments")

START_STREAM = "/plugin.GRPCBroker/StartStream"


PLUGIN = PLUGINS / "probe_plugin.py"


def host(world: World, script: Path = PLUGIN, **config: Any) -> Host:
    """A Go host for the plugin, or for a script that becomes it. config: as for World.host()."""
    return world.host(script, cookie=("PROBE_COOKIE", "probe"), **config)


def start(world: World, script: Path = PLUGIN, **config: Any) -> Host:
    """A Go host that has started the plugin."""
    started = host(world, script, **config)
    started.ask("start")
    return started


def message(argument: Any) -> bytes:
    """The request with this argument."""
    return json.dumps(argument).encode()


def do(host: Host, method: Callable[..., Any], argument: Any = None, **options: Any) -> Any:
    """Call a method of the plugin's class Probe. options: as for Host.call()."""
    return json.loads(host.call(f"/probe.Probe/{method.__name__}", message(argument), **options))


def act(
    host: Host,
    action: "Callable[[Call, Unpack[Arguments]], Any]",
    *arguments: "Unpack[Arguments]",
    **options: Any,
) -> Any:
    """Have a handler call a function of plugins/actions; return its result. options: as for Host.call()."""
    return json.loads(begin(host, action, *arguments, **options)()["message"])


def begin(
    host: Host,
    action: "Callable[[Call, Unpack[Arguments]], Any]",
    *arguments: "Unpack[Arguments]",
    **options: Any,
) -> Callable[[], dict[str, Any]]:
    """As act, but do not wait. Call the result to wait for the host's answer."""
    return host.begin("call", method=method(action), message=action_message(action, *arguments), **options)


def method(action: Callable[..., Any]) -> str:
    """The method that calls the action."""
    return "/probe.Probe/act_in_the_loop" if inspect.iscoroutinefunction(action) else "/probe.Probe/act"


def action_message(action: "Callable[[Call, Unpack[Arguments]], Any]", *arguments: "Unpack[Arguments]") -> bytes:
    """The request for the action."""
    return message([action.__module__, action.__name__, *arguments])


def open_stream(host: Host, stream: int, method: str, message: bytes = b"") -> None:
    """Call a method that takes one message and returns a stream. stream: a number that the test chooses for it."""
    host.ask("open", stream=stream, method=method)
    host.ask("send", stream=stream, message=message)
    host.ask("half_close", stream=stream)


def serve(host: Host) -> int:
    """Have the host serve an echo to the plugin; return its id."""
    service_id: int = host.ask("next_id")["broker"]
    host.ask("accept", broker=service_id)
    return service_id
