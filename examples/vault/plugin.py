#!/usr/bin/env python3
"""A secrets engine for Vault: notes, kept in Vault's own storage. Vault starts it; README.md shows how."""

import goplugin  # first: from here on only the handshake line reaches the stdout that the host reads

import json
import logging
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from sdk.helper.pluginutil import multiplexing_pb2, multiplexing_pb2_grpc
from sdk.logical import version_pb2, version_pb2_grpc
from sdk.plugin.pb import backend_pb2 as pb
from sdk.plugin.pb import backend_pb2_grpc

_log = logging.getLogger("notes")  # the records reach Vault's log, with their level

# Vault's, from plugin/serve.go of its SDK. 5 is the version of plugins that serve several mounts in one process.
HANDSHAKE = goplugin.HandshakeConfig(
    protocol_versions=[5],
    magic_cookie_key="VAULT_BACKEND_PLUGIN",
    magic_cookie_value="6669da05-b1c8-4f49-97d9-c8e5bed98e20",
)

VERSION = "v0.1.0"
SECRETS_ENGINE = 1  # logical.TypeLogical
UNSUPPORTED_OPERATION, UNSUPPORTED_PATH = 5, 6  # of plugin/pb/translation.go


@dataclass
class Mount:
    """One `vault secrets enable`. channel: to the services that Vault has for it; storage: one of these."""

    channel: Any
    storage: Any


class BackendServicer(backend_pb2_grpc.BackendServicer):
    """What Vault asks of a secrets engine. Each call names its mount by the metadata multiplex_id."""

    def __init__(self, broker: goplugin.Broker) -> None:
        self.broker = broker
        self.mounts: dict[str, Mount] = {}

    def Type(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.TypeReply:
        """Return what kind of plugin it is."""
        return pb.TypeReply(type=SECRETS_ENGINE)

    def SpecialPaths(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.SpecialPathsReply:
        """Return which paths need no token, or are treated specially in another way: none."""
        return pb.SpecialPathsReply(paths=pb.Paths())

    def Setup(self, request: pb.SetupArgs, context: grpc.ServicerContext) -> pb.SetupReply:
        """Connect a mount: Vault serves its storage under an id of the broker."""
        channel = self.broker.dial(request.broker_id)
        self.mounts[multiplex_id(context)] = Mount(channel, backend_pb2_grpc.StorageStub(channel))
        return pb.SetupReply()

    def Initialize(self, request: pb.InitializeArgs, context: grpc.ServicerContext) -> pb.InitializeReply:
        """Prepare what the storage must have: nothing."""
        return pb.InitializeReply()

    def HandleExistenceCheck(
        self, request: pb.HandleExistenceCheckArgs, context: grpc.ServicerContext
    ) -> pb.HandleExistenceCheckReply:
        """Say whether the path exists: then a write is an "update" for Vault's policies, else a "create"."""
        entry = self.storage(context).Get(pb.StorageGetArgs(key=request.request.path)).entry
        return pb.HandleExistenceCheckReply(check_found=True, exists=bool(entry.key))

    def HandleRequest(self, request: pb.HandleRequestArgs, context: grpc.ServicerContext) -> pb.HandleRequestReply:
        """Answer a user's request: its path is that behind the mount's."""
        storage, operation, path = self.storage(context), request.request.operation, request.request.path
        if operation == "list":
            keys = storage.List(pb.StorageListArgs(prefix=path)).keys
            return answer({"keys": list(keys)} if keys else None)
        if operation not in ("create", "update", "read", "delete"):
            # Vault asks for a "rollback" now and then; with this answer it knows that there is none.
            return pb.HandleRequestReply(err=pb.ProtoError(err_type=UNSUPPORTED_OPERATION))
        if not path or path.endswith("/"):
            return pb.HandleRequestReply(err=pb.ProtoError(err_type=UNSUPPORTED_PATH))
        if operation == "read":
            entry = storage.Get(pb.StorageGetArgs(key=path)).entry
            return answer({"text": entry.value.decode()} if entry.key else None)
        if operation == "delete":
            check(storage.Delete(pb.StorageDeleteArgs(key=path)))
            return answer(None)
        text = json.loads(request.request.data or "{}").get("text")
        if not isinstance(text, str):
            return answer({"error": f"a note needs a text: vault write {request.request.mount_point}{path} text=..."})
        check(storage.Put(pb.StoragePutArgs(entry=pb.StorageEntry(key=path, value=text.encode()))))
        _log.info("stored", extra={"path": path})  # never the text: it is the secret
        return answer(None)

    def InvalidateKey(self, request: pb.InvalidateKeyArgs, context: grpc.ServicerContext) -> pb.Empty:
        """Forget what is cached of the key, which another node has changed: nothing is cached."""
        return pb.Empty()

    def Cleanup(self, request: pb.Empty, context: grpc.ServicerContext) -> pb.Empty:
        """End a mount; the others go on."""
        mount = self.mounts.pop(multiplex_id(context), None)
        if mount:
            mount.channel.close()
        return pb.Empty()

    def storage(self, context: grpc.ServicerContext) -> Any:
        """Return the mount's storage; FAILED_PRECONDITION before Setup."""
        mount = self.mounts.get(multiplex_id(context))
        if not mount:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this mount was not set up")
        return mount.storage


def multiplex_id(context: grpc.ServicerContext) -> str:
    """Return which mount the call is for."""
    return str(dict(context.invocation_metadata()).get("multiplex_id", ""))


def answer(data: dict[str, Any] | None) -> pb.HandleRequestReply:
    """Return data for the user; with "error" in it, Vault says 400; None is no content, or 404 for a read."""
    return pb.HandleRequestReply(response=pb.Response(data=json.dumps(data)) if data is not None else None)


def check(reply: pb.StoragePutReply | pb.StorageDeleteReply) -> None:
    """Raise what Vault's storage says; the user sees it."""
    if reply.err:
        raise RuntimeError(f"Vault's storage: {reply.err}")


class VersionServicer(version_pb2_grpc.PluginVersionServicer):
    """What `vault plugin list` shows."""

    def Version(self, request: version_pb2.Empty, context: grpc.ServicerContext) -> version_pb2.VersionReply:
        """Return the version, which begins with v."""
        return version_pb2.VersionReply(plugin_version=VERSION)


class MultiplexingServicer(multiplexing_pb2_grpc.PluginMultiplexingServicer):
    """Tells Vault that one process serves all mounts."""

    def MultiplexingSupport(
        self, request: multiplexing_pb2.MultiplexingSupportRequest, context: grpc.ServicerContext
    ) -> multiplexing_pb2.MultiplexingSupportResponse:
        """Return that it does."""
        return multiplexing_pb2.MultiplexingSupportResponse(supported=True)


def main() -> None:
    """The four steps of the guide."""
    plugin = goplugin.Plugin(HANDSHAKE, usage=__doc__)

    # 1. Implement the services: the servicers above. 2. Serve them.
    server = grpc.server(**plugin.server_arguments)
    backend_pb2_grpc.add_BackendServicer_to_server(BackendServicer(plugin.broker), server)
    version_pb2_grpc.add_PluginVersionServicer_to_server(VersionServicer(), server)
    multiplexing_pb2_grpc.add_PluginMultiplexingServicer_to_server(MultiplexingServicer(), server)

    # 3. Add the gRPC health checking service.
    health_servicer = health.HealthServicer()
    health_servicer.set("plugin", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)

    # 4. Listen, and print the handshake line.
    print(plugin.listen(server), flush=True)
    plugin.wait()


if __name__ == "__main__":
    main()
