"""plugin.py, tested by a host in Python, without Go and Vault: the test serves Storage, as Vault does."""

import json
import sys
import time
from collections.abc import Callable, Iterator
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
SECOND = 1_000_000_000


class Storage(backend_pb2_grpc.StorageServicer):
    """A mount's."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.error = ""

    def List(self, request: Any, context: Any) -> pb.StorageListReply:
        keys = [key.removeprefix(request.prefix) for key in self.entries if key.startswith(request.prefix)]
        return pb.StorageListReply(keys=sorted({key[: key.find("/") + 1] or key for key in keys}))

    def Get(self, request: Any, context: Any) -> pb.StorageGetReply:
        return pb.StorageGetReply(entry=self.entries.get(request.key))

    def Put(self, request: Any, context: Any) -> pb.StoragePutReply:
        if not self.error:
            self.entries[request.entry.key] = request.entry
        return pb.StoragePutReply(err=self.error)

    def Delete(self, request: Any, context: Any) -> pb.StorageDeleteReply:
        self.entries.pop(request.key, None)
        return pb.StorageDeleteReply()


class SystemView(backend_pb2_grpc.SystemViewServicer):
    """What Vault knows of a mount."""

    tainted = False

    def Tainted(self, request: Any, context: Any) -> pb.TaintedReply:
        return pb.TaintedReply(tainted=self.tainted)


class MountPoint:
    """What Vault has for each mount."""

    def __init__(self, client: goplugin.testing.Client, name: str) -> None:
        self.storage, self.system = Storage(), SystemView()
        self.metadata = (("multiplex_id", name),)
        self.backend: Any = backend_pb2_grpc.BackendStub(client.channel)
        number = client.broker.next_id()
        client.broker.accept(number, self.serve)
        self.backend.Setup(pb.SetupArgs(broker_id=number), metadata=self.metadata)

    def serve(self, server: grpc.Server) -> None:
        backend_pb2_grpc.add_StorageServicer_to_server(self.storage, server)
        backend_pb2_grpc.add_SystemViewServicer_to_server(self.system, server)

    def ask(self, operation: str, path: str, data: Any = None, **others: Any) -> pb.HandleRequestReply:
        request = pb.Request(operation=operation, path=path, data=json.dumps(data), mount_point="web/", **others)
        reply = self.backend.HandleRequest(pb.HandleRequestArgs(request=request), metadata=self.metadata)
        assert isinstance(reply, pb.HandleRequestReply)
        return reply

    def __call__(self, operation: str, path: str, **data: Any) -> Any:
        """Make a request; the data that it returns, or None."""
        reply = self.ask(operation, path, data)
        assert not reply.HasField("err"), reply.err
        return json.loads(reply.response.data) if reply.HasField("response") else None

    def exists(self, path: str) -> bool:
        request = pb.HandleExistenceCheckArgs(request=pb.Request(path=path))
        return bool(self.backend.HandleExistenceCheck(request, metadata=self.metadata).exists)


Start = Callable[..., goplugin.testing.Client]


@pytest.fixture
def start() -> Iterator[Start]:
    """The plugin, started as Vault does, with these arguments."""
    clients = []

    def start(*arguments: str) -> goplugin.testing.Client:
        clients.append(goplugin.testing.start([sys.executable, str(PLUGIN), *arguments], HANDSHAKE, auto_mtls=True))
        return clients[-1]

    yield start
    for client in clients:
        client.kill()
        assert client.exit_code == 0


@pytest.fixture
def web(start: Start, tmp_path: Path) -> MountPoint:
    """The secrets engine, with a file and a role."""
    web = MountPoint(start(), "1")
    web("create", "config", file=str(tmp_path / "htpasswd"))
    web("create", "role/reader", ttl="1h", max_ttl=86400)
    return web


def accounts(folder: Path) -> list[str]:
    """Whom the web server knows."""
    return [line.split(":")[0] for line in (folder / "htpasswd").read_text(encoding="utf-8").splitlines()]


def test_roles(web: MountPoint) -> None:
    assert web("read", "role/reader") == {"ttl": 3600, "max_ttl": 86400}
    assert web("read", "role/writer") is None
    assert web.exists("role/reader")
    assert not web.exists("role/writer")
    web("update", "role/reader", ttl="1m30s")
    assert web("read", "role/reader") == {"ttl": 90, "max_ttl": 86400}
    assert web("list", "role/") == {"keys": ["reader"]}
    web("delete", "role/reader")
    assert web("list", "role/") is None


def test_a_lease_from_its_start_to_its_end(web: MountPoint, tmp_path: Path) -> None:
    others = "ann:$apr1$1$oGXUKxJdVZ/TVuGwhc6nb/\n"
    (tmp_path / "htpasswd").write_text(others, encoding="utf-8")
    reply = web.ask("read", "creds/reader").response
    name, secret = json.loads(reply.data)["username"], reply.secret
    assert accounts(tmp_path) == ["ann", name]
    assert (secret.lease_options.TTL, secret.lease_options.MaxTTL) == (3600 * SECOND, 86400 * SECOND)
    assert secret.lease_options.renewable
    web("update", "role/reader", ttl=7200)
    renewed = web.ask("renew", "creds/reader", secret=secret).response.secret
    assert renewed.lease_options.TTL == 7200 * SECOND
    assert renewed.lease_options.issue_time == secret.lease_options.issue_time
    for _ in range(2):  # Vault may ask again
        assert web.ask("revoke", "creds/reader", secret=renewed) == pb.HandleRequestReply()
        assert (tmp_path / "htpasswd").read_text(encoding="utf-8") == others
    assert not [key for key in web.storage.entries if key.startswith("account/")]
    assert "the account is gone" in web.ask("renew", "creds/reader", secret=renewed).response.data


def test_accounts_whose_lease_vault_lost(web: MountPoint, tmp_path: Path) -> None:
    web("update", "role/reader", ttl=0, max_ttl=0)
    web("read", "creds/reader")
    web("update", "role/reader", ttl=1, max_ttl=60)
    web("read", "creds/reader")
    assert len(accounts(tmp_path)) == 2
    web("rollback", "")
    assert len(accounts(tmp_path)) == 1
    web.system.tainted = True  # it is being disabled
    web("rollback", "")
    assert not accounts(tmp_path)


def test_what_is_wrong_is_said(web: MountPoint) -> None:
    assert web("read", "creds/writer") == {"error": "vault write web/role/writer: there is none"}
    assert web("create", "role/root:x") == {"error": "a name has letters, digits, '-', '_' and '.'"}
    assert web("create", "role/a", tll=1) == {"error": "there is no tll: fields are ttl, max_ttl"}
    assert web("create", "role/a", ttl="soon") == {"error": "'soon' is not a duration, such as 90s or 1h30m"}
    assert web("create", "role/a", ttl="2d") == {"error": "ttl is longer than max_ttl"}
    assert web("create", "config", file="here") == {"error": "here is not an absolute path"}
    web("delete", "config")
    assert web("create", "config") == {"error": "there is no value for file"}
    assert web("read", "creds/reader") == {"error": "vault write web/config file=...: reader needs it"}
    assert web.ask("read", "nowhere").err.err_type == 6
    assert web.ask("alias-lookahead", "creds/reader").err.err_type == 5
    web.storage.error = "it is sealed"
    with pytest.raises(grpc.RpcError) as raised:
        web("create", "role/a")
    assert "Vault's storage: it is sealed" in str(raised.value.details())


def test_mounts_are_apart(start: Start) -> None:
    client = start()
    one, two = MountPoint(client, "1"), MountPoint(client, "2")
    one("create", "role/reader")
    assert two("read", "role/reader") is None
    one.backend.Cleanup(pb.Empty(), metadata=one.metadata)
    with pytest.raises(grpc.RpcError) as raised:
        one("read", "role/reader")
    assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    two("create", "role/reader")


def test_login(start: Start) -> None:
    people = MountPoint(start("auth"), "1")
    assert people.backend.SpecialPaths(pb.Empty(), metadata=people.metadata).paths.unauthenticated == ["login/*"]
    secret = str(time.time())
    people("create", "user/ann", password=secret, policies="reader,writer", ttl="30m")
    assert people("read", "user/ann") == {
        "password": "(set)", "policies": ["reader", "writer"], "ttl": 1800, "max_ttl": 86400,
    }  # fmt: skip
    assert secret not in str(people.storage.entries)
    for name, password in [("ann", "open sesame"), ("ann", ""), ("bob", ""), ("bob", secret)]:
        assert people("update", f"login/{name}", password=password) == {"error": "wrong name or password"}
    auth = people.ask("update", "login/ann", {"password": secret}).response.auth
    assert ([*auth.policies], auth.alias.name, auth.lease_options.TTL) == (["reader", "writer"], "ann", 1800 * SECOND)
    people("update", "user/ann", ttl="1h")
    assert people.ask("renew", "login/ann", auth=auth).response.auth.lease_options.TTL == 3600 * SECOND
    people("update", "user/ann", policies=["reader"])
    assert "log in again" in people.ask("renew", "login/ann", auth=auth).response.data


def test_version_and_type(start: Start) -> None:
    for arguments, kind in (([], 1), (["auth"], 2)):
        client = start(*arguments)
        stub: Any = version_pb2_grpc.PluginVersionStub(client.channel)
        assert stub.Version(version_pb2.Empty()).plugin_version == "v0.1.0"
        backend: Any = backend_pb2_grpc.BackendStub(client.channel)
        assert backend.Type(pb.Empty()).type == kind
