"""The C library's memory, of which large messages take much."""

import platform
from pathlib import Path

import psutil
import pytest
from conftest import World
from kv import get, put

HEAP = 64 * 2**20  # glibc aligns a thread's own heap to so many bytes


def heaps_of_threads(process: psutil.Process) -> int:
    lines = [line.split() for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines()]
    starts = [int(line[0].split("-")[0], 16) for line in lines if line[1] == "rw-p" and len(line) == 5]
    return sum(start % HEAP == 0 for start in starts)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has heaps of threads")
def test_one_heap_for_all_threads(world: World) -> None:
    """But not where the environment has settings of its own."""
    heaps = []
    for own in ({}, {"MALLOC_ARENA_TEST": "8"}):
        world.env |= own
        host = world.started()
        put(host, "large", b"x" * 4_000_000)
        get(host, "large")
        heaps.append(heaps_of_threads(world.plugin()))
        host.close()
    assert heaps[0] == 0
    assert heaps[1] > 0
