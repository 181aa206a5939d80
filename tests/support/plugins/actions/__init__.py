"""What tests have handlers of the probe plugin do: functions, which tests name and the plugin calls.

A test says probe.act(host, handlers.limit_threads, 6). The function's name, its arguments and what it returns travel as
JSON. An `async def` runs in the event loop of a plugin on asyncio. Tests import these modules too, so these import
nothing of the probe plugin.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class Call:
    """The call in which an action runs. Each action takes it first, whether it needs it or not."""

    plugin: Any  # goplugin.Plugin, or that of goplugin.aio
    context: Any  # grpc's
