"""A plugin that greets, made from the plugin.py beside goplugin/."""

import goplugin

from collections.abc import Iterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import greeter_pb2
import greeter_pb2_grpc

HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[5, 6], magic_cookie_key="GREETER_PLUGIN", magic_cookie_value="good day"
)


class GreeterServicer(greeter_pb2_grpc.GreeterServicer):
    def __init__(self, broker: goplugin.Broker) -> None:
        self.broker = broker

    def Greet(self, request: greeter_pb2.Person, context: grpc.ServicerContext) -> greeter_pb2.Greeting:
        return greeter_pb2.Greeting(text=f"Good day, {request.name}")

    def Countdown(self, request: greeter_pb2.Person, context: grpc.ServicerContext) -> Iterator[greeter_pb2.Greeting]:
        for number in range(request.number, 0, -1):
            yield greeter_pb2.Greeting(text=f"{number}, {request.name}")

    def GreetHost(self, request: greeter_pb2.Person, context: grpc.ServicerContext) -> greeter_pb2.Greeting:
        with self.broker.dial(request.number) as channel:
            echo = channel.unary_unary("/any.Service/Method")
            return greeter_pb2.Greeting(text=echo(request.name.encode()).decode())


def main() -> None:
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)
    server = grpc.server(**plugin.server_arguments)
    greeter_pb2_grpc.add_GreeterServicer_to_server(GreeterServicer(plugin.broker), server)
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
