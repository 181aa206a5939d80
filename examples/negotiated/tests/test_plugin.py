"""plugin.py, tested by a host in Python, without Go: by old hosts and by new ones."""

import sys
from pathlib import Path

import pytest

import goplugin
import goplugin.testing
import kv_pb2
import kv_pb2_grpc

PLUGIN = Path(__file__).parent.parent / "plugin.py"


@pytest.mark.parametrize(
    ("known", "version", "value"),
    [
        ([3], 3, b"world\n\nWritten from plugin version 3\nRead by plugin version 3\n"),
        ([2, 3], 3, b"world\n\nWritten from plugin version 3\nRead by plugin version 3\n"),
        ([3, 4], 4, b"world"),
        ([5, 4], 4, b"world"),
    ],
)
def test_a_host_that_knows(known: list[int], version: int, value: bytes, tmp_path: Path) -> None:
    host = goplugin.HandshakeConfig(known, "BASIC_PLUGIN", "hello")
    with goplugin.testing.start([sys.executable, str(PLUGIN)], host, cwd=tmp_path) as client:
        assert client.version == version
        kv = kv_pb2_grpc.KVStub(client.channel)
        kv.Put(kv_pb2.PutRequest(key="hello", value=b"world"))
        assert kv.Get(kv_pb2.GetRequest(key="hello")).value == value
    assert client.exit_code == 0


def test_a_host_that_knows_neither(tmp_path: Path) -> None:
    host = goplugin.HandshakeConfig([2], "BASIC_PLUGIN", "hello")
    with (
        pytest.raises(goplugin.testing.PluginError, match="incompatible API version"),
        goplugin.testing.start([sys.executable, str(PLUGIN)], host, cwd=tmp_path),
    ):
        pass
