"""plugin.py, tested as any plugin can be: by a host in Python, without Go. Copy this file along with the plugin."""

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import goplugin.testing
import kv_pb2
import kv_pb2_grpc
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"


@pytest.fixture(params=[False, True], ids=["plain", "AutoMTLS"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    """The plugin, started as a host does, in a folder of its own."""
    command = [sys.executable, str(PLUGIN)]
    with goplugin.testing.start(command, HANDSHAKE, auto_mtls=request.param, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0
    assert not [record for record in client.log if record["@level"] in ("warn", "error")]


def test_put_and_get(client: goplugin.testing.Client, tmp_path: Path) -> None:
    kv = kv_pb2_grpc.KVStub(client.channel)
    kv.Put(kv_pb2.PutRequest(key="hello", value=b"world"))
    assert kv.Get(kv_pb2.GetRequest(key="hello")).value == b"world\n\nWritten from plugin-python"
    assert (tmp_path / "kv_hello").exists()


def test_a_missing_key_is_named(client: goplugin.testing.Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        kv_pb2_grpc.KVStub(client.channel).Get(kv_pb2.GetRequest(key="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert raised.value.details() == "no such key: 'nobody'"
