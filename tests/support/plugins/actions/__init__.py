"""Functions that tests have the probe plugin's handlers call.

A test says probe.act(host, handlers.limit_threads, 6). The function's name, arguments and result travel as JSON. An
`async def` runs in the event loop of a plugin on asyncio. Tests import these modules, too, so these modules import
nothing from the probe plugin.
"""

from dataclasses import dataclass
from typing import Any


@dataclass
class Call:
    """The call in which an action runs. Each action takes it first, whether it needs it or not."""

    plugin: Any  # goplugin.Plugin or goplugin.aio.Plugin
    context: Any  # grpc's
