"""The rights that the worker gives up before it reads foreign files."""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

# A batch of the widest rows needs 150 MiB.
MEMORY_LIMIT = 512 * 1024 * 1024
OPEN_FILES_LIMIT = 64
# No account has this id on Debian, Red Hat or in systemd's table, and a container's 65,536 ids hold it. It is
# not the id of the embedded PostgreSQL.
UNPRIVILEGED_ID = 61_183

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, and end it now if the parent has ended already.

    Only Linux can. Elsewhere the pipes end the process: no request comes, and writing fails.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def limit_resources() -> None:
    """Bound memory and open files, and forbid written files, core dumps and rights by exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, limit in (
        ("RLIMIT_AS", MEMORY_LIMIT),
        ("RLIMIT_NOFILE", OPEN_FILES_LIMIT),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        # macOS knows RLIMIT_AS and refuses to set it.
        with suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (lowest, lowest))


def forbid_children() -> None:
    """Let this process start no other one."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def is_root() -> bool:
    """Whether this process has rights of root that it can give up."""
    return sys.platform == "linux" and os.geteuid() == 0


def become_unprivileged() -> None:
    """Take a user id that owns nothing. A system that lacks that id leaves this process as it is."""
    # Each by itself: a container may forbid to change groups, and allow to change the user.
    with suppress(OSError):
        os.setgroups([])
    with suppress(OSError):
        os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    with suppress(OSError):
        os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
