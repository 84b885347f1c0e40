"""Lets the C library return the memory of large buffers to the system as soon as they are freed."""

import ctypes
import sys
from contextlib import suppress

# Buffers from this size on get pages of their own, which are returned when the buffer is freed. By default
# glibc raises this limit to the size of the largest freed buffer, and then keeps the pieces: loading an
# archive took 13 MB more.
LARGE_BYTES = 256 * 1024

_M_MMAP_THRESHOLD = -3


def return_large_buffers() -> None:
    """Set the limit for this process. Other C libraries than glibc have no such limit, and need none."""
    if sys.platform == "linux":
        with suppress(AttributeError):
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
