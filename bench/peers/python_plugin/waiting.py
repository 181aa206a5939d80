"""The KV plugin on python-plugin with a handler that waits, as its users would: asyncio.sleep."""

import asyncio
from typing import Any

import kv_pb2
import plugin


class WaitingKVServicer(plugin.KVServicer):
    """KVServicer with something slow in it."""

    async def Get(self, stream: Any) -> None:
        await stream.recv_message()
        await asyncio.sleep(0.1)
        await stream.send_message(kv_pb2.GetResponse())


class WaitingKVPlugin(plugin.KVPlugin):
    servicer = WaitingKVServicer


if __name__ == "__main__":
    plugin.main(WaitingKVPlugin())
