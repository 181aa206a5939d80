"""What every plugin for Vault needs: mounts, their storage, the form of answers. Your own is in engine.py and auth.py.

Vault's SDK for Go has this in its folders plugin/ and framework/.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sdk.helper.pluginutil import multiplexing_pb2, multiplexing_pb2_grpc
from sdk.logical import version_pb2, version_pb2_grpc
from sdk.plugin.pb import backend_pb2 as pb
from sdk.plugin.pb import backend_pb2_grpc

import goplugin

SECRETS_ENGINE, AUTH_METHOD = 1, 2  # logical.TypeLogical and logical.TypeCredential
SECOND = 1_000_000_000  # Vault counts nanoseconds

# What a stored entry has: for each field, what reads it, and its default; a field without one must be given.
Fields = Mapping[str, tuple[Callable[[Any], Any], Any]]


class UserError(Exception):
    """The user asked for something that cannot be. Vault answers 400, with this text."""


class Unsupported(Exception):
    """Vault asked for what this plugin does not have: a path, or an operation there."""


class Storage:
    """A mount's own part of Vault's storage, which encrypts it: a dict for each key."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the entry, if there is one."""
        reply = _checked(self._stub.Get(pb.StorageGetArgs(key=key)))
        return json.loads(reply.entry.value) if reply.entry.key else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Write an entry."""
        _checked(self._stub.Put(pb.StoragePutArgs(entry=pb.StorageEntry(key=key, value=json.dumps(value).encode()))))

    def delete(self, key: str) -> None:
        """Delete an entry, if there is one."""
        _checked(self._stub.Delete(pb.StorageDeleteArgs(key=key)))

    def keys(self, prefix: str) -> list[str]:
        """Return the rest of the keys that begin so, up to the next slash. The prefix ends with one."""
        return list(_checked(self._stub.List(pb.StorageListArgs(prefix=prefix))).keys)


def _checked(reply: Any) -> Any:
    """Raise what the storage says, sealed for example; the user sees it, and Vault tries a revocation again."""
    if reply.err:
        raise RuntimeError(f"Vault's storage: {reply.err}")
    return reply


@dataclass
class Request:
    """What a user, or Vault itself, asks.

    system: a stub of SystemView, which knows what Vault does with the mount. vault: the whole request.
    """

    storage: Storage
    system: Any
    operation: str  # create, update, read, delete, list; renew, revoke, rollback, and others of logical/request.go
    path: str  # behind the mount's
    data: dict[str, Any]
    vault: pb.Request


class Backend:
    """A secrets engine or an auth method. One object for all mounts: what belongs to one is in its storage."""

    kind: int
    root: Sequence[str] = ()  # paths for which a policy must have "sudo"
    unauthenticated: Sequence[str] = ()  # paths that need no token

    def handle(self, request: Request) -> pb.Response | None:
        """Return the answer; None is no content, or 404 for a read. Raises UserError and Unsupported."""
        raise NotImplementedError


def stored(request: Request, fields: Fields) -> pb.Response | None:
    """Create, change, read, delete or list entries that are kept as they are: roles, users."""
    storage, path = request.storage, request.path
    if path.endswith("/") != (request.operation == "list"):
        raise Unsupported
    match request.operation:
        case "list":
            keys = storage.keys(path)
            return response({"keys": keys}) if keys else None
        case "read":
            entry = storage.get(path)
            return response(entry) if entry else None
        case "delete":
            storage.delete(path)
            return None
        case "create" | "update":
            if not re.fullmatch(r"[\w./-]+", path, re.ASCII):
                raise UserError("a name has letters, digits, '-', '_' and '.'")
            if unknown := sorted(request.data.keys() - fields.keys()):
                raise UserError(f"there is no {', '.join(unknown)}: fields are {', '.join(fields)}")
            entry = {name: default for name, (_, default) in fields.items()} | (storage.get(path) or {})
            entry |= {name: fields[name][0](value) for name, value in request.data.items()}
            if missing := [name for name, value in entry.items() if value is None]:
                raise UserError(f"there is no value for {', '.join(missing)}")
            if entry.get("ttl", 0) > entry.get("max_ttl", 0):
                raise UserError("ttl is longer than max_ttl")
            storage.put(path, entry)
            return None
    raise Unsupported


def seconds(value: Any) -> int:
    """Read a field such as 90, "90", "90s" or "1h30m"."""
    text = f"{value}s" if re.fullmatch(r"\d+", str(value)) else str(value)
    if not re.fullmatch(r"(\d+[smhd])+", text):
        raise UserError(f"{value!r} is not a duration, such as 90s or 1h30m")
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+)(.)", text))


def texts(value: Any) -> list[str]:
    """Read a field such as ["a", "b"] or "a,b"."""
    items = value if isinstance(value, list) else str(value).split(",")
    return [str(item) for item in items if item]


def response(data: Mapping[str, Any] | None, **others: Any) -> pb.Response:
    """Return data for the user, with a secret or an auth."""
    return pb.Response(data=json.dumps(data), **others)  # "null" without data: Vault's SDK wants JSON in each field


def lease(times: Mapping[str, Any], since: Timestamp | None = None) -> pb.LeaseOptions:
    """Return for how long a secret or token is valid: ttl from now on, and max_ttl from its start. since: its start.

    Vault shortens that if the user wants less, or the mount allows less.
    """
    options = pb.LeaseOptions(TTL=times["ttl"] * SECOND, MaxTTL=times["max_ttl"] * SECOND, renewable=True)
    if since:
        options.issue_time.CopyFrom(since)
    else:
        options.issue_time.GetCurrentTime()  # Vault sets it anew, but its SDK takes no lease without one
    return options


@dataclass
class Mount:
    """One `vault secrets enable` or `vault auth enable`. channel: to the services that Vault has for it."""

    channel: Any
    storage: Storage
    system: Any


class BackendServicer(backend_pb2_grpc.BackendServicer):
    """What Vault calls. If one process serves all mounts, each call names its own by the metadata multiplex_id."""

    def __init__(self, backend: Backend, broker: goplugin.Broker) -> None:
        self.backend, self.broker = backend, broker
        self.mounts: dict[str, Mount] = {}

    def Type(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.TypeReply:
        """Return what kind of plugin it is."""
        return pb.TypeReply(type=self.backend.kind)

    def SpecialPaths(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.SpecialPathsReply:
        """Return which paths are treated specially."""
        paths = pb.Paths(root=self.backend.root, unauthenticated=self.backend.unauthenticated)
        return pb.SpecialPathsReply(paths=paths)

    def Setup(self, request: pb.SetupArgs, context: grpc.ServicerContext) -> pb.SetupReply:
        """Connect a mount: Vault serves its storage under an id of the broker."""
        channel = self.broker.dial(request.broker_id)
        storage, system = backend_pb2_grpc.StorageStub(channel), backend_pb2_grpc.SystemViewStub(channel)
        self.mounts[multiplex_id(context)] = Mount(channel, Storage(storage), system)
        return pb.SetupReply()

    def Initialize(self, request: pb.InitializeArgs, context: grpc.ServicerContext) -> pb.InitializeReply:
        """Prepare what the storage must have: nothing."""
        return pb.InitializeReply()

    def HandleExistenceCheck(
        self, request: pb.HandleExistenceCheckArgs, context: grpc.ServicerContext
    ) -> pb.HandleExistenceCheckReply:
        """Say whether the path exists: then a write is an "update" for Vault's policies, else a "create"."""
        entry = self.mount(context).storage.get(request.request.path)
        return pb.HandleExistenceCheckReply(check_found=True, exists=entry is not None)

    def HandleRequest(self, request: pb.HandleRequestArgs, context: grpc.ServicerContext) -> pb.HandleRequestReply:
        """Answer a request; the types of errors are those of plugin/pb/translation.go."""
        vault, mount = request.request, self.mount(context)
        data = json.loads(vault.data or "null") or {}
        own = Request(mount.storage, mount.system, vault.operation, vault.path, data, vault)
        try:
            return pb.HandleRequestReply(response=self.backend.handle(own))
        except UserError as error:
            return pb.HandleRequestReply(response=response({"error": str(error)}))
        except Unsupported:
            # Vault asks for a "rollback" now and then, and for "alias-lookahead": with 5 it knows that there is none.
            by_user = own.operation in ("create", "update", "read", "delete", "list")
            return pb.HandleRequestReply(err=pb.ProtoError(err_type=6 if by_user else 5))

    def InvalidateKey(self, request: pb.InvalidateKeyArgs, context: grpc.ServicerContext) -> pb.Empty:
        """Forget what is cached of the key, which another node has changed: nothing is cached."""
        return pb.Empty()

    def Cleanup(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.Empty:
        """End a mount: it is disabled or reloaded, or Vault is sealed. The others go on."""
        mount = self.mounts.pop(multiplex_id(context), None)
        if mount:
            mount.channel.close()
        return pb.Empty()

    def mount(self, context: grpc.ServicerContext) -> Mount:
        """Return the mount that the call is for; FAILED_PRECONDITION before Setup."""
        mount = self.mounts.get(multiplex_id(context))
        if not mount:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this mount was not set up")
        return mount


def multiplex_id(context: grpc.ServicerContext) -> str:
    """Return which mount the call is for."""
    return str(dict(context.invocation_metadata()).get("multiplex_id", ""))


class PluginServicer(version_pb2_grpc.PluginVersionServicer, multiplexing_pb2_grpc.PluginMultiplexingServicer):
    """What Vault asks of the process."""

    def __init__(self, version: str) -> None:
        self.version = version

    def Version(self, request: version_pb2.Empty, context: grpc.ServicerContext) -> version_pb2.VersionReply:
        """Return what `vault plugin list` shows; it begins with v."""
        return version_pb2.VersionReply(plugin_version=self.version)

    def MultiplexingSupport(
        self, request: multiplexing_pb2.MultiplexingSupportRequest, context: grpc.ServicerContext
    ) -> multiplexing_pb2.MultiplexingSupportResponse:
        """Say that one process serves all mounts. Without this service, Vault starts one for each."""
        return multiplexing_pb2.MultiplexingSupportResponse(supported=True)


def add_to_server(server: grpc.Server, backend: Backend, broker: goplugin.Broker, version: str) -> None:
    """Add all three services."""
    servicer = PluginServicer(version)
    backend_pb2_grpc.add_BackendServicer_to_server(BackendServicer(backend, broker), server)
    version_pb2_grpc.add_PluginVersionServicer_to_server(servicer, server)
    multiplexing_pb2_grpc.add_PluginMultiplexingServicer_to_server(servicer, server)
