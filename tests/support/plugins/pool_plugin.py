"""plugin.py with multiprocessing workers, whose functions are here because they must be importable."""

import goplugin  # noqa: F401

import concurrent.futures
import logging
import multiprocessing
import os
import time
from typing import Any

import grpc

import kv_pb2
import plugin

HOUR = 3600.0


def sleep() -> None:
    logging.getLogger("of.a.worker").warning("busy")
    time.sleep(HOUR)


def log(text: str) -> int:
    logging.getLogger("of.a.worker").warning("%s", text, extra={"pid": os.getpid()})
    return os.getpid()


def fail(text: str) -> None:
    raise ValueError(text)


def cookies() -> list[str]:
    return [name for name in os.environ if name.startswith(("PLUGIN_", "BASIC_"))]


class Servicer(plugin.KVServicer):
    """Put(kind, method) starts busy workers; Get(method) logs from one."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def Put(self, request: Any, context: grpc.ServicerContext) -> Any:
        way = multiprocessing.get_context(request.value.decode())
        if request.key == "Process":
            process = way.Process(target=sleep)
            process.start()
            self.kept.append(process)
        elif request.key == "daemon":
            process = way.Process(target=sleep, daemon=True)
            process.start()
            self.kept.append(process)
        elif request.key == "Pool":
            pool = way.Pool(2)
            self.kept += [pool, *(pool.apply_async(sleep) for _ in range(4))]
        else:
            executor = concurrent.futures.ProcessPoolExecutor(2, mp_context=way)
            self.kept += [executor, *(executor.submit(sleep) for _ in range(4))]
        return kv_pb2.Empty()

    def Get(self, request: Any, context: grpc.ServicerContext) -> Any:
        way = multiprocessing.get_context(request.key)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=way) as executor:
            pid = executor.submit(log, "x" * 20_000).result()
            left = executor.submit(cookies).result()
        process = way.Process(target=fail, args=("a worker fails",))
        process.start()
        process.join()
        return kv_pb2.GetResponse(value=f"{pid} {left}".encode())


def main() -> None:
    plugin.KVServicer = Servicer  # type: ignore[misc]
    plugin.main()


if __name__ == "__main__":
    main()
