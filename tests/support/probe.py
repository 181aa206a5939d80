"""The probe plugin as the tests call it; see tests/support/plugins/probe_plugin.py."""

import json
from typing import Any

from harness import PLUGINS, Host, World

START_STREAM = "/plugin.GRPCBroker/StartStream"


def start(world: World, **config: Any) -> Host:
    return world.started(PLUGINS / "probe_plugin.py", **{"cookie": ("PROBE_COOKIE", "probe"), **config})


def message(argument: Any) -> bytes:
    """The request of a method."""
    return json.dumps(argument).encode()


def do(host: Host, method: str, argument: Any = None, **options: Any) -> Any:
    return json.loads(host.call(f"/probe.Probe/{method}", json.dumps(argument).encode(), **options))


def serve(host: Host) -> int:
    """Have the host serve an echo to the plugin; its id."""
    service_id: int = host.ask("next_id")["broker"]
    host.ask("accept", broker=service_id)
    return service_id
