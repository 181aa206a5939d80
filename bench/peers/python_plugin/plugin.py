"""The KV plugin on PyPI's python-plugin, as its description shows: `async def` on grpclib."""

from typing import Any

import kv_grpc
import kv_pb2
from pyplugin import HandshakeConfig, Plugin, ServeConfig, serve


class KVServicer(kv_grpc.KVBase):
    """Keeps each value in the file kv_<key> of the working directory."""

    async def Get(self, stream: Any) -> None:
        request = await stream.recv_message()
        with open("kv_" + request.key, "rb") as file:  # noqa: ASYNC230, small and local: a thread would take longer
            value = file.read()
        await stream.send_message(kv_pb2.GetResponse(value=value))

    async def Put(self, stream: Any) -> None:
        request = await stream.recv_message()
        with open("kv_" + request.key, "wb") as file:  # noqa: ASYNC230
            file.write(request.value + b"\n\nWritten from python-plugin")
        await stream.send_message(kv_pb2.Empty())


class KVPlugin(Plugin):
    """What python-plugin asks for: the servicers of a plugin, and the host's stub for them."""

    def servicers(self, broker: Any) -> list[Any]:
        return [KVServicer()]

    def stub(self, broker: Any, channel: Any) -> Any:
        return kv_grpc.KVStub(channel)


def main() -> None:
    handshake = HandshakeConfig(protocol_version=1, magic_cookie_key="BASIC_PLUGIN", magic_cookie_value="hello")
    serve(ServeConfig(handshake_config=handshake, plugins={"kv": KVPlugin()}))


if __name__ == "__main__":
    main()
