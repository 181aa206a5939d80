"""Memory of the C library: large messages take a lot of it."""

import itertools
import platform
from pathlib import Path

import psutil
import pytest
from harness import World
from kv import get, put

HEAP = 64 * 2**20  # glibc aligns the heaps of threads to this size, and nothing else


def heaps_of_threads(process: psutil.Process) -> int:
    """The number of heaps that glibc has made for threads: each starts aligned, with the rest of 64 MiB reserved."""
    lines = [line.split() for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    count = 0
    for line, after in itertools.pairwise(lines):
        start, end = (int(number, 16) for number in line[0].split("-"))
        reserved_to = int(after[0].split("-")[1], 16)
        count += line[1] == "rw-p" and len(line) == 5 and start % HEAP == 0 and end <= reserved_to == start + HEAP
    return count


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has heaps of threads")
def test_one_heap_for_all_threads(world: World) -> None:
    """Unless the environment has malloc settings of its own."""
    heaps = []
    for own in ({}, {"MALLOC_ARENA_TEST": "8"}):
        world.env |= own
        host = world.started()
        for _ in range(4):
            put(host, "large", b"x" * 4_000_000)
            get(host, "large")
        heaps.append(heaps_of_threads(world.plugin()))
        host.close()
    assert heaps[0] == 0
    assert heaps[1] > 0
