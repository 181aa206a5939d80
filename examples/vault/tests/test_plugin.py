"""plugin.py, tested by a host in Python, without Go and Vault: the test serves Storage, as Vault does."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from sdk.logical import version_pb2, version_pb2_grpc
from sdk.plugin.pb import backend_pb2 as pb
from sdk.plugin.pb import backend_pb2_grpc

import goplugin.testing
from plugin import HANDSHAKE

PLUGIN = Path(__file__).parent.parent / "plugin.py"


class Storage(backend_pb2_grpc.StorageServicer):
    """A mount's."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.error = ""

    def List(self, request: Any, context: Any) -> pb.StorageListReply:
        return pb.StorageListReply(keys=sorted(key for key in self.entries if key.startswith(request.prefix)))

    def Get(self, request: Any, context: Any) -> pb.StorageGetReply:
        return pb.StorageGetReply(entry=self.entries.get(request.key))

    def Put(self, request: Any, context: Any) -> pb.StoragePutReply:
        if not self.error:
            self.entries[request.entry.key] = request.entry
        return pb.StoragePutReply(err=self.error)

    def Delete(self, request: Any, context: Any) -> pb.StorageDeleteReply:
        self.entries.pop(request.key, None)
        return pb.StorageDeleteReply()


class MountPoint:
    """What Vault has for each mount."""

    def __init__(self, client: goplugin.testing.Client, name: str) -> None:
        self.storage = Storage()
        self.metadata = (("multiplex_id", name),)
        self.backend: Any = backend_pb2_grpc.BackendStub(client.channel)
        number = client.broker.next_id()
        client.broker.accept(
            number, lambda server: backend_pb2_grpc.add_StorageServicer_to_server(self.storage, server)
        )
        self.backend.Setup(pb.SetupArgs(broker_id=number), metadata=self.metadata)

    def __call__(self, operation: str, path: str, **data: Any) -> Any:
        """Make a request; the data that it returns, or None."""
        request = pb.Request(operation=operation, path=path, data=json.dumps(data), mount_point="notes/")
        reply = self.backend.HandleRequest(pb.HandleRequestArgs(request=request), metadata=self.metadata)
        assert not reply.HasField("err"), reply.err
        return json.loads(reply.response.data) if reply.HasField("response") else None

    def exists(self, path: str) -> bool:
        request = pb.HandleExistenceCheckArgs(request=pb.Request(path=path))
        return bool(self.backend.HandleExistenceCheck(request, metadata=self.metadata).exists)


@pytest.fixture
def client() -> Iterator[goplugin.testing.Client]:
    """The plugin, started as Vault does."""
    with goplugin.testing.start([sys.executable, str(PLUGIN)], HANDSHAKE, auto_mtls=True) as client:
        yield client
    assert client.exit_code == 0


def test_write_read_list_and_delete(client: goplugin.testing.Client) -> None:
    mount = MountPoint(client, "1")
    assert mount("read", "hello") is None
    assert not mount.exists("hello")
    assert mount("create", "hello", text="world") is None
    assert mount.exists("hello")
    assert mount("read", "hello") == {"text": "world"}
    assert mount("list", "") == {"keys": ["hello"]}
    mount("delete", "hello")
    assert mount("list", "") is None


def test_what_is_wrong_is_said(client: goplugin.testing.Client) -> None:
    mount = MountPoint(client, "1")
    assert mount("create", "hello") == {"error": "a note needs a text: vault write notes/hello text=..."}
    mount.storage.error = "it is sealed"
    with pytest.raises(grpc.RpcError) as raised:
        mount("create", "hello", text="world")
    assert "Vault's storage: it is sealed" in str(raised.value.details())


def test_mounts_are_apart(client: goplugin.testing.Client) -> None:
    one, two = MountPoint(client, "1"), MountPoint(client, "2")
    one("create", "hello", text="from one")
    assert two("read", "hello") is None
    one.backend.Cleanup(pb.Empty(), metadata=one.metadata)
    with pytest.raises(grpc.RpcError) as raised:
        one("read", "hello")
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    two("create", "hello", text="from two")


def test_version(client: goplugin.testing.Client) -> None:
    stub: Any = version_pb2_grpc.PluginVersionStub(client.channel)
    assert stub.Version(version_pb2.Empty()).plugin_version == "v0.1.0"
