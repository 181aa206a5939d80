"""plugin.py, tested by a host in Python, without Go."""

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import goplugin
import goplugin.testing
import kv_pb2
import kv_pb2_grpc

PLUGIN = Path(__file__).parent.parent / "plugin.py"
HANDSHAKE = goplugin.HandshakeConfig([1], "BASIC_PLUGIN", "hello")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    with goplugin.testing.start([sys.executable, PLUGIN], HANDSHAKE, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0


def test_put_and_get(client: goplugin.testing.Client, tmp_path: Path) -> None:
    kv = kv_pb2_grpc.KVStub(client.channel)
    kv.Put(kv_pb2.PutRequest(key="../hello", value=b"world"))
    assert kv.Get(kv_pb2.GetRequest(key="../hello")).value == b"world\n\nWritten from plugin-python"
    assert [path.name for path in tmp_path.iterdir()] == ["kv_..%2Fhello"]


def test_a_missing_key(client: goplugin.testing.Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        kv_pb2_grpc.KVStub(client.channel).Get(kv_pb2.GetRequest(key="nobody"))
    assert "No such file" in str(raised.value.details())
