"""Large messages without the C library's worst habits with memory; nothing of go-plugin's, since Go has its own.

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
    """From now on, one heap for all threads, of which up to 64 MiB are kept for what comes next.

    To be called before there are threads. Does nothing where there is no glibc, or the environment has settings of its
    own for it.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        import ctypes  # some Pythons are built without

        mallopt = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, TypeError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)  # the highest there is; also keeps glibc from moving it by itself
    mallopt(_M_TRIM_THRESHOLD, 64 * _MIB)
