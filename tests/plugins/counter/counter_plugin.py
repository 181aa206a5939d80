"""The plugin of go-plugin's bidirectional example: its Put has the host do the adding."""

import goplugin

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import counter_pb2
import counter_pb2_grpc

HANDSHAKE = goplugin.HandshakeConfig([1], "BASIC_PLUGIN", "hello")


class CounterServicer(counter_pb2_grpc.CounterServicer):
    def __init__(self, broker: goplugin.Broker) -> None:
        self.broker = broker

    def Get(self, request: counter_pb2.GetRequest, context: grpc.ServicerContext) -> counter_pb2.GetResponse:
        return counter_pb2.GetResponse(value=self.value(request.key))

    def Put(self, request: counter_pb2.PutRequest, context: grpc.ServicerContext) -> counter_pb2.Empty:
        with self.broker.dial(request.add_server) as channel:
            helper = counter_pb2_grpc.AddHelperStub(channel)
            total = helper.Sum(counter_pb2.SumRequest(a=self.value(request.key), b=request.value))
        Path(f"kv_{request.key}").write_text(json.dumps({"Value": total.r}))
        return counter_pb2.Empty()

    def value(self, key: str) -> int:
        path = Path(f"kv_{key}")
        return int(json.loads(path.read_text())["Value"]) if path.exists() else 0


def main() -> None:
    plugin = goplugin.Plugin(HANDSHAKE)
    server = grpc.server(**plugin.server_arguments)
    counter_pb2_grpc.add_CounterServicer_to_server(CounterServicer(plugin.broker), server)
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
