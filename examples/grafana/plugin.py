#!/usr/bin/env python3
"""The backend of a data source for Grafana: it reads the values of sensors. source.py defines what it does.

Grafana starts this program; README.md shows how Grafana finds it. To debug it:

    python standalone.py
"""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import backend_pb2_grpc
from source import DataSource

# Grafana's values, from backend/grpcplugin/handshake.go of its SDK. They are the same for all kinds of plugins.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[2], magic_cookie_key="grafana_plugin_type", magic_cookie_value="datasource"
)


def add_to_server(server: Any) -> None:
    """Add the services that Grafana calls."""
    source = DataSource()
    backend_pb2_grpc.add_DiagnosticsServicer_to_server(source, server)
    backend_pb2_grpc.add_DataServicer_to_server(source, server)
    backend_pb2_grpc.add_ResourceServicer_to_server(source, server)
    backend_pb2_grpc.add_StreamServicer_to_server(source, server)


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the services: DataSource does. 2. Serve them.
    server = grpc.server(**plugin.server_arguments)
    add_to_server(server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
