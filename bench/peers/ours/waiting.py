"""This project's plugin with a handler that waits: Get of the key "wait" sleeps 100 ms, as any blocking call would."""

import plugin  # first: it imports goplugin before grpc

# isort: split
import time

import grpc

import kv_pb2


class WaitingKVServicer(plugin.KVServicer):
    """KVServicer with something slow in it."""

    def Get(self, request: kv_pb2.GetRequest, context: grpc.ServicerContext) -> kv_pb2.GetResponse:
        if request.key == "wait":
            time.sleep(0.1)
            return kv_pb2.GetResponse()
        return super().Get(request, context)


if __name__ == "__main__":
    plugin.KVServicer = WaitingKVServicer  # type: ignore[misc]
    plugin.main()
