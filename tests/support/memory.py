"""A folder in memory for the files of test servers.

A database has 300 files, and ext4 searches long for a place for a file while many were just deleted.
"""

import os
import shutil
import tempfile
from pathlib import Path

# Where Linux keeps files in memory, and how much must be free there.
MEMORY = Path("/dev/shm")
LEAST_BYTES = 4 * 2**30
PREFIX = "kasparro-tests-"


def server_folder() -> Path:
    """A new folder in memory, or in the folder for temporary files if there is too little memory."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < LEAST_BYTES:
        return Path(tempfile.mkdtemp(prefix=PREFIX))
    for left in MEMORY.glob(f"{PREFIX}*"):
        # Of a test process that was killed.
        if not Path("/proc", left.name.split("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY))
