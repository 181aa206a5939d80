"""Calls of the KV service through the Go host."""

from harness import Host

import kv_pb2

SUFFIX = b"\n\nWritten from plugin-python"


def put(host: Host, key: str, value: bytes) -> None:
    host.call("/proto.KV/Put", kv_pb2.PutRequest(key=key, value=value))


def get(host: Host, key: str) -> bytes:
    value: bytes = host.call("/proto.KV/Get", kv_pb2.GetRequest(key=key), kv_pb2.GetResponse).value
    return value
