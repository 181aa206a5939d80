"""This project's plugin on asyncio with a handler that waits: Get of the key "wait" sleeps 100 ms."""

import plugin  # first: it imports goplugin before grpc

# isort: split
import asyncio

import kv_pb2


class WaitingKVServicer(plugin.KVServicer):
    """KVServicer with something slow in it."""

    async def Get(self, request: kv_pb2.GetRequest, context: plugin.Context) -> kv_pb2.GetResponse:
        if request.key == "wait":
            await asyncio.sleep(0.1)
            return kv_pb2.GetResponse()
        return await super().Get(request, context)


if __name__ == "__main__":
    plugin.KVServicer = WaitingKVServicer
    asyncio.run(plugin.main())
