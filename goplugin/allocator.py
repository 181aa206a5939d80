"""Memory settings of the C library, for large messages. Go does not need them.

protobuf and gRPC copy a message several times, each time into a buffer of its size. By default, glibc either keeps such
buffers for each thread separately, or returns them to the system and asks for them again with each message. That costs
more time than everything else.
"""

import os
from typing import Any

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_MALLINFO2 = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"

_MIB = 1 << 20
_KEPT = 64 * _MIB


class Allocator:
    """Makes all threads share one heap from now on, and keeps up to 64 MiB of free memory for the next message.

    Create it before threads start. It does nothing without glibc, or if the environment has settings for glibc.
    """

    def __init__(self) -> None:
        self._glibc: Any = None
        self._free = 0  # bytes after the last trim
        if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
            return
        try:
            import ctypes  # some builds of Python lack it

            glibc = ctypes.CDLL(None)
            mallopt = glibc.mallopt
        except (ImportError, OSError, TypeError, AttributeError):
            return
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the highest value; glibc then also stops adapting it
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        if hasattr(glibc, "mallinfo2"):  # since glibc 2.33
            fields = [(name, ctypes.c_size_t) for name in _MALLINFO2.split()]
            glibc.mallinfo2.restype = type("mallinfo2", (ctypes.Structure,), {"_fields_": fields})
            self._glibc = glibc

    def trim(self) -> None:
        """Return free memory beyond 64 MiB to the system. glibc itself does so only at the end of its heap."""
        free = self._glibc.mallinfo2().fordblks if self._glibc else 0
        if free > _KEPT and free != self._free:  # returned memory still counts as free
            self._glibc.malloc_trim(0)
            self._free = self._glibc.mallinfo2().fordblks
