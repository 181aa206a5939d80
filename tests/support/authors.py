"""Plugins as an author writes them, in which tests make mistakes, and one that cannot make folders."""

RIGHT = """\
import goplugin
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import sys, threading, time
import kv_pb2_grpc
from plugin import HANDSHAKE, KVServicer
plugin = goplugin.Plugin(HANDSHAKE)
server = grpc.server(**plugin.server_arguments)
kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)
health_servicer = health.HealthServicer()
health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
print(plugin.listen(server), flush=True)
plugin.wait()
"""

ON_ASYNCIO = """\
import goplugin.aio
import asyncio, signal, sys, time
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
import kv_pb2_grpc
from plugin import HANDSHAKE, KVServicer
async def main():
    plugin = goplugin.aio.Plugin(HANDSHAKE)
    server = grpc.aio.server(**plugin.server_arguments)
    kv_pb2_grpc.add_KVServicer_to_server(KVServicer(), server)
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    print(await plugin.listen(server), flush=True)
    await plugin.wait()
asyncio.run(main())
"""

WITHOUT_FOLDERS = """\
import os
def no(*arguments, **options): raise PermissionError(13, 'Permission denied')
os.mkdir = no
import plugin
plugin.main()
"""
