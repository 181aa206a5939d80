"""The server behind an id of the broker. Mirrors AcceptAndServe in go-plugin's grpc_broker.go."""

import contextlib
from typing import Any

from goplugin.address import Address
from goplugin.transport import Transport


class AcceptedBase:
    """What Accepted and goplugin.aio's Accepted share."""

    def __init__(self, broker: Any, transport: Transport, service_id: int) -> None:
        self.service_id = service_id
        self._broker, self._transport = broker, transport
        self._served: tuple[Any, Address] | None = None

    def listen(self, server: Any, stoppable: Any) -> Address:
        """Bind the server, and return the address for the host. OSError or ValueError if it cannot listen.

        stoppable: its stop(None) stops the server, in any thread.
        """
        address = self._transport.listen(server)
        self._served = stoppable, address
        return address

    def stop(self) -> Any:
        """Stop serving, and cancel calls in flight. Return what stoppable.stop() returned, if it was called."""
        self._broker.forget(self)
        served, self._served = self._served, None
        if not served:
            return None
        stopped = served[0].stop(None)
        self._transport.close(served[1])
        return stopped


class Accepted(AcceptedBase, contextlib.AbstractContextManager["Accepted"]):
    """A server under an id. Close it when the host no longer needs it, or use it in a `with`."""

    def close(self) -> None:
        """Stop serving, and cancel calls in flight. Closing again does nothing."""
        self.stop()

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()
