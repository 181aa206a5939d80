"""The plugin of go-plugin's bidirectional example, on asyncio: Put has the host add the numbers."""

import goplugin.aio

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import counter_pb2
import counter_pb2_grpc

HANDSHAKE = goplugin.HandshakeConfig([1], "BASIC_PLUGIN", "hello")


class CounterServicer(counter_pb2_grpc.CounterServicer):
    """Get is `def` and runs in a thread; Put awaits the host and is `async def`."""

    def __init__(self, broker: goplugin.aio.Broker) -> None:
        self.broker = broker

    def Get(self, request: counter_pb2.GetRequest, context: grpc.ServicerContext) -> counter_pb2.GetResponse:
        return counter_pb2.GetResponse(value=value(request.key))

    async def Put(self, request: counter_pb2.PutRequest, context: Any) -> counter_pb2.Empty:
        async with await self.broker.dial(request.add_server) as channel:
            helper = counter_pb2_grpc.AddHelperStub(channel)
            total = await helper.Sum(counter_pb2.SumRequest(a=value(request.key), b=request.value))
        await asyncio.to_thread(Path(f"kv_{request.key}").write_text, json.dumps({"Value": total.r}))
        return counter_pb2.Empty()


def value(key: str) -> int:
    path = Path(f"kv_{key}")
    return int(json.loads(path.read_text())["Value"]) if path.exists() else 0


async def main() -> None:
    plugin = goplugin.aio.Plugin(HANDSHAKE)
    server = grpc.aio.server(**plugin.server_arguments)
    counter_pb2_grpc.add_CounterServicer_to_server(CounterServicer(plugin.broker), server)
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(await plugin.listen(server), flush=True)
    await plugin.wait()


if __name__ == "__main__":
    asyncio.run(main())
