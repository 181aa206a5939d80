#!/usr/bin/env python3
"""The plugin of go-plugin's bidirectional example: to add two numbers, the plugin calls the host back.

export COUNTER_PLUGIN="python plugin.py"
go run github.com/hashicorp/go-plugin/examples/bidirectional@v1.8.0 put hello 1
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import json
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import counter_pb2
import counter_pb2_grpc

HANDSHAKE = goplugin.HandshakeConfig(protocol_versions=[1], magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")


class CounterServicer(counter_pb2_grpc.CounterServicer):
    """Keeps each number in the file kv_<key>, as go-plugin's own example does."""

    def __init__(self, broker: goplugin.Broker) -> None:
        self.broker = broker

    def Get(self, request: counter_pb2.GetRequest, context: grpc.ServicerContext) -> counter_pb2.GetResponse:
        """Return the key's number; 0 if it has none."""
        return counter_pb2.GetResponse(value=read(file_of(request.key, context)))

    def Put(self, request: counter_pb2.PutRequest, context: grpc.ServicerContext) -> counter_pb2.Empty:
        """Add to the key's number. The host computes the sum: it serves AddHelper under an id of the broker."""
        path = file_of(request.key, context)
        with self.broker.dial(request.add_server) as channel:
            helper = counter_pb2_grpc.AddHelperStub(channel)
            total = helper.Sum(counter_pb2.SumRequest(a=read(path), b=request.value)).r
        path.write_text(json.dumps({"Value": total}), encoding="utf-8")
        return counter_pb2.Empty()


def file_of(key: str, context: grpc.ServicerContext) -> Path:
    """Return the key's file; INVALID_ARGUMENT unless the key is letters, digits and underscores."""
    if not key.isidentifier():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a key is letters, digits and underscores, not {key!r}")
    return Path(f"kv_{key}")


def read(path: Path) -> int:
    """Return the number in the file; 0 if there is no file."""
    return int(json.loads(path.read_text(encoding="utf-8"))["Value"]) if path.exists() else 0


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the service: CounterServicer above, with the broker. 2. Serve it.
    server = grpc.server(**plugin.server_arguments)
    counter_pb2_grpc.add_CounterServicer_to_server(CounterServicer(plugin.broker), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
