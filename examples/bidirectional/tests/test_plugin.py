"""plugin.py, tested by a host in Python, without Go: the test serves AddHelper, as the host does."""

import sys
from collections.abc import Iterator
from pathlib import Path

import counter_pb2
import counter_pb2_grpc
import grpc
import pytest

import goplugin.testing
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"


class AddHelper(counter_pb2_grpc.AddHelperServicer):
    """The host's."""

    def Sum(self, request: counter_pb2.SumRequest, context: grpc.ServicerContext) -> counter_pb2.SumResponse:
        return counter_pb2.SumResponse(r=request.a + request.b)


@pytest.fixture(params=[False, True], ids=["plain", "AutoMTLS"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[goplugin.testing.Client]:
    """The plugin, started as a host does, in a folder of its own."""
    command = [sys.executable, str(PLUGIN)]
    with goplugin.testing.start(command, HANDSHAKE, auto_mtls=request.param, cwd=tmp_path) as client:
        yield client
    assert client.exit_code == 0


def test_the_host_adds(client: goplugin.testing.Client) -> None:
    counter = counter_pb2_grpc.CounterStub(client.channel)
    for value in (1, 41):
        number = client.broker.next_id()
        add_helper = client.broker.accept(
            number, lambda server: counter_pb2_grpc.add_AddHelperServicer_to_server(AddHelper(), server)
        )
        counter.Put(counter_pb2.PutRequest(add_server=number, key="hello", value=value))
        add_helper.close()
    assert counter.Get(counter_pb2.GetRequest(key="hello")).value == 42


def test_a_key_cannot_leave_the_folder(client: goplugin.testing.Client) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        counter_pb2_grpc.CounterStub(client.channel).Get(counter_pb2.GetRequest(key="../hello"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
