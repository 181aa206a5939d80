"""Which test runs in which world (a kind of plugin under a kind of host). `make worlds` prints them for each test.

A test that takes the fixture `world` runs once in each world of its file, below. A marker leaves some worlds out.
"""

import sys
from typing import Any

import pytest

WORLDS = (
    "plain",  # grpc.server; the host connects without TLS
    "AutoMTLS",
    "asyncio",  # grpc.aio.server
    "asyncio, AutoMTLS",
    "multiplexed",  # the host wants one connection for everything
    "multiplexed, AutoMTLS",
    "multiplexed, asyncio",
    "multiplexed, asyncio, AutoMTLS",
    "native",  # pygrpc_native.server
)

# One column for each world, in that order. x: in `make test`; s: in `make test-all`, like all slow tests; .: never.
EACH = "xsss s..s s"
MOST = "xss. s..s s"  # multiplexed, asyncio, AutoMTLS stands for asyncio under AutoMTLS too
ON_EACH_SERVER = "x.s. .... s"
FILES = {
    # Only one world can break these.
    "test_aio": "..xs .... .",
    "test_automtls": ON_EACH_SERVER,  # these tests set AutoMTLS themselves
    "test_loopback_hop": ".x.x x..x .",
    "test_multiplex": ".... xsss .",
    "test_native": ".... .... x",
    # Each world could break these.
    "test_broker": EACH,
    "test_calls": MOST,
    "test_children": MOST,
    "test_companion": MOST,
    "test_corners": MOST,
    "test_hostile_children": MOST,
    "test_kv": EACH,
    "test_leaving": MOST,
    "test_lifetime": MOST,
    "test_machines": MOST,
    "test_server": MOST,
    "test_stdio": EACH,
    # These do not depend on the host.
    "test_debug": ON_EACH_SERVER,
    "test_handshake": ON_EACH_SERVER,
    "test_limits": ON_EACH_SERVER,
    "test_log": ON_EACH_SERVER,
    "test_neighbours": ON_EACH_SERVER,
    "test_versions": ON_EACH_SERVER,
    "test_shipping": "xs.. .... .",
}
OTHER_FILES = "x... .... ."

# The worlds that a marker keeps. Each use of a marker gives a reason.
MARKERS = {
    "plain_only": "x.x. .... x",
    "threads_only": "xx.. .... .",
    "unmultiplexed": "xxxx .... x",
    "grpcio_only": "xxxx xxxx .",
}


def of(file: str, markers: set[str]) -> list[Any]:
    """The worlds of a test as pytest parameters. file: its module's name; markers: the names of its markers."""
    columns = FILES.get(file, OTHER_FILES).replace(" ", "")
    for marker in markers & MARKERS.keys():
        left = MARKERS[marker].replace(" ", "")
        columns = "".join("." if keep == "." else column for column, keep in zip(columns, left, strict=True))
    marks = {"x": [], "s": [pytest.mark.slow]}
    return [pytest.param(world, marks=marks[c]) for world, c in zip(WORLDS, columns, strict=True) if c != "."]


class Printer:
    """A pytest plugin that prints the table of the collected tests."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        tests: dict[str, dict[str, str]] = {}
        for item in session.items:
            world = item.callspec.params.get("world", "") if hasattr(item, "callspec") else ""
            when = "s" if item.get_closest_marker("slow") else "x"
            tests.setdefault(item.nodeid.partition("[")[0], {})[world] = when
        width = max(map(len, tests))
        for number, world in enumerate(WORLDS):
            print(" " * width, "| " * number + world)
        for test, worlds in tests.items():
            columns = " ".join(worlds.get(world, ".") for world in WORLDS)
            print(test.ljust(width), f"no plugin: {worlds['']}" if "" in worlds else columns)


if __name__ == "__main__":
    command = ["--collect-only", "-o", "addopts=", "-p", "no:randomly", "-p", "no:terminal"]
    sys.exit(pytest.main([*command, *sys.argv[1:]], [Printer()]))
