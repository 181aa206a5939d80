"""The probe plugin as the tests call it; see tests/plugins/probe_plugin.py."""

import json
from typing import Any

from harness import PLUGINS, Host, World


def start(world: World, **config: Any) -> Host:
    host = world.host(PLUGINS / "probe_plugin.py", **{"cookie": ("PROBE_COOKIE", "probe"), **config})
    host.ask("start")
    return host


def message(argument: Any) -> bytes:
    """The request of a method."""
    return json.dumps(argument).encode()


def do(host: Host, method: str, argument: Any = None, **options: Any) -> Any:
    return json.loads(host.call(f"/probe.Probe/{method}", json.dumps(argument).encode(), **options))
