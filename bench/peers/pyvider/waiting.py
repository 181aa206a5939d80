"""The KV plugin on pyvider-rpcplugin with a handler that waits, as its users would: asyncio.sleep."""

import asyncio

import grpc

import kv_pb2
import plugin


class WaitingKVHandler(plugin.KVHandler):
    """KVHandler with something slow in it."""

    async def Get(self, request: kv_pb2.GetRequest, context: grpc.aio.ServicerContext) -> kv_pb2.GetResponse:
        await asyncio.sleep(0.1)
        return kv_pb2.GetResponse()


if __name__ == "__main__":
    asyncio.run(plugin.main(WaitingKVHandler()))
