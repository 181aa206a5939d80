"""A peer's KV plugin whose Get sleeps 100 ms, as its users would: time.sleep on threads, asyncio.sleep on asyncio.

It runs beside a copy of the peer's plugin.py.
"""

import plugin  # first: this project's imports goplugin before grpc

# isort: split
import asyncio
import inspect
import time
from typing import Any


def get_on_threads(self: Any, request: Any, context: Any) -> Any:
    time.sleep(0.1)
    return plugin.kv_pb2.GetResponse()


async def get_on_asyncio(self: Any, request: Any, context: Any) -> Any:
    await asyncio.sleep(0.1)
    return plugin.kv_pb2.GetResponse()


async def get_on_grpclib(self: Any, stream: Any) -> None:
    await stream.recv_message()
    await asyncio.sleep(0.1)
    await stream.send_message(plugin.kv_pb2.GetResponse())


if __name__ == "__main__":
    get: Any = plugin.KVServicer.Get
    on_asyncio = get_on_grpclib if "stream" in inspect.signature(get).parameters else get_on_asyncio
    plugin.KVServicer.Get = on_asyncio if inspect.iscoroutinefunction(get) else get_on_threads
    main = getattr(plugin, "main", None) or plugin.serve  # upstream's has no main
    main()
