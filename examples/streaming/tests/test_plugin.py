"""plugin.py, tested by a host in Python, without Go."""

import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import streamer_pb2 as pb
import streamer_pb2_grpc

import goplugin.testing
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"


@pytest.fixture(params=[False, True], ids=["plain", "AutoMTLS"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    """The plugin, started as a host does, in a folder of its own."""
    command = [sys.executable, str(PLUGIN)]
    with goplugin.testing.start(command, HANDSHAKE, auto_mtls=request.param, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0


def chunks(*content: bytes) -> Iterator[pb.Write.RequestChunk]:
    return (pb.Write.RequestChunk(bytes_to_write=chunk) for chunk in content)


def test_there_and_back(client: goplugin.testing.Client, tmp_path: Path) -> None:
    streamer = streamer_pb2_grpc.StreamerServiceStub(client.channel)
    streamer.Configure(pb.Configure.Request(path="file", chunk_size=4))
    streamer.Write(chunks(b"hello ", b"", b"world"))
    assert [chunk.read_bytes for chunk in streamer.Read(pb.Read.Request())] == [b"hell", b"o wo", b"rld"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_before_configure(client: goplugin.testing.Client) -> None:
    streamer = streamer_pb2_grpc.StreamerServiceStub(client.channel)
    with pytest.raises(grpc.RpcError) as raised:
        streamer.Write(chunks(b"x"))
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    streamer.Configure(pb.Configure.Request(path="nothing", chunk_size=4))
    with pytest.raises(grpc.RpcError) as raised:
        list(streamer.Read(pb.Read.Request()))
    assert "No such file" in str(raised.value.details())


def test_follow_ends_with_its_caller(client: goplugin.testing.Client, tmp_path: Path) -> None:
    streamer = streamer_pb2_grpc.StreamerServiceStub(client.channel)
    streamer.Configure(pb.Configure.Request(path="file", chunk_size=4))
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for _ in range(520):  # more than there are threads
        followed = streamer.Follow(pb.Follow.Request(), timeout=10)
        followed.initial_metadata()
        followed.cancel()
    followed = streamer.Follow(pb.Follow.Request(), timeout=10)
    followed.initial_metadata()
    with path.open("ab") as file:
        file.write(b"hello")
    assert [next(followed).appended_bytes, next(followed).appended_bytes] == [b"hell", b"o"]
    followed.cancel()
