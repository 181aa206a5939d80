"""go-plugin's plugin-python with a handler that waits. Run beside a copy of it: `plugin` is its plugin.py."""

import time
from typing import Any

from proto import kv_pb2

import plugin


class WaitingKVServicer(plugin.KVServicer):  # type: ignore[misc, name-defined]
    """KVServicer with something slow in it."""

    def Get(self, request: Any, context: Any) -> Any:
        if request.key == "wait":
            time.sleep(0.1)
            return kv_pb2.GetResponse()
        return super().Get(request, context)


if __name__ == "__main__":
    plugin.KVServicer = WaitingKVServicer
    plugin.serve()
