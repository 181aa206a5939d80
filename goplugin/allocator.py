"""Settings of the C library's memory, for large messages. Go needs none of this.

On its way through protobuf and gRPC a message is copied several times, in buffers of its own size. With its ordinary
settings glibc keeps such memory for each thread by itself, or gives it back to the system and fetches it again for
each message, which costs more time than all else.
"""

import os

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_MIB = 1 << 20


def keep_buffers() -> None:
    """Use one heap for all threads from now on, and keep up to 64 MiB of free memory for the next message.

    Call it before threads are started. It does nothing without glibc, or if the environment has settings for glibc.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        import ctypes  # some Pythons are built without

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, TypeError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the highest value; setting it also keeps glibc from changing it
    mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
