"""Takes rights away from the archive worker before it reads files from outside."""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress

# A batch of the widest rows needs 150 MiB.
MEMORY_LIMIT = 512 * 1024 * 1024
OPEN_FILES_LIMIT = 64
# No account has this id on Debian or Red Hat or in systemd's table, and it is among a container's 65,536 ids.
# The embedded PostgreSQL has another id.
UNPRIVILEGED_ID = 61_183

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def end_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends; end it now if the parent has already ended.

    Only Linux can do this. On other systems the process ends because no request comes or writing fails.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def limit_resources() -> None:
    """Limit memory and open files; forbid writing files, core dumps and gaining rights by exec."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for name, limit in (
        ("RLIMIT_AS", MEMORY_LIMIT),
        ("RLIMIT_NOFILE", OPEN_FILES_LIMIT),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_CORE", 0),
    ):
        # macOS has RLIMIT_AS but does not let it be set.
        with suppress(AttributeError, OSError, ValueError):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            lowest = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (lowest, lowest))


def forbid_children() -> None:
    """Forbid this process to start others."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def is_root() -> bool:
    """Whether this process has root's rights and can give them up."""
    return sys.platform == "linux" and os.geteuid() == 0


def become_unprivileged() -> None:
    """Take a user id that owns nothing. If the system does not have that id, nothing changes."""
    # Each call is tried: a container may forbid changing groups but allow changing the user.
    with suppress(OSError):
        os.setgroups([])
    with suppress(OSError):
        os.setresgid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
    with suppress(OSError):
        os.setresuid(UNPRIVILEGED_ID, UNPRIVILEGED_ID, UNPRIVILEGED_ID)
