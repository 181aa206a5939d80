"""The KV plugin on PyPI's pyvider-rpcplugin, as its "Build Your First Plugin" shows: `async def` on grpc.aio."""

import asyncio
from typing import Any

import grpc
import kv_pb2
import kv_pb2_grpc
from pyvider.rpcplugin import RPCPluginProtocol, plugin_server


class KVServicer(kv_pb2_grpc.KVServicer):
    """Keeps each value in the file kv_<key> of the working directory."""

    async def Get(self, request: kv_pb2.GetRequest, context: grpc.aio.ServicerContext) -> kv_pb2.GetResponse:
        with open("kv_" + request.key, "rb") as file:  # noqa: ASYNC230, small and local: a thread would take longer
            return kv_pb2.GetResponse(value=file.read())

    async def Put(self, request: kv_pb2.PutRequest, context: grpc.aio.ServicerContext) -> kv_pb2.Empty:
        with open("kv_" + request.key, "wb") as file:  # noqa: ASYNC230
            file.write(request.value + b"\n\nWritten from pyvider-rpcplugin")
        return kv_pb2.Empty()


class KVProtocol(RPCPluginProtocol):
    """What pyvider calls the protocol bridge."""

    async def get_grpc_descriptors(self) -> tuple[Any, str]:
        return kv_pb2_grpc, "proto.KV"

    def get_method_type(self, method_name: str) -> str:
        return "unary_unary"

    async def add_to_server(self, server: Any, handler: Any) -> None:
        kv_pb2_grpc.add_KVServicer_to_server(handler, server)


async def serve() -> None:
    # The cookie is the host's; everything else is as it comes.
    config = {"PLUGIN_MAGIC_COOKIE_KEY": "BASIC_PLUGIN", "PLUGIN_MAGIC_COOKIE_VALUE": "hello"}
    await plugin_server(protocol=KVProtocol(), handler=KVServicer(), config=config).serve()


def main() -> None:
    asyncio.run(serve())


if __name__ == "__main__":
    main()
