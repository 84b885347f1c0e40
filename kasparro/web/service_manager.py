"""Reports to systemd that the service serves, is alive, and stops (sd_notify(3), Type=notify)."""

import os
import socket
import time
from contextlib import suppress

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


class ServiceManager:
    """The service manager that started this process, if there is one. Errors are ignored."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        # The name of an abstract socket begins with @ in the environment, and with a zero byte in the kernel.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        limit = os.environ.get("WATCHDOG_USEC", "")
        # Twice as often as it must be.
        self._alive_every_s = int(limit) / 2e6 if limit.isascii() and limit.isdigit() else None
        self._alive_at = 0.0

    def notify(self, state: str) -> None:
        """Report a state."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.setblocking(False)
            sending.sendto(state.encode(), self._address)

    def alive(self) -> None:
        """Report that the process is alive, if it is time for that. Call it often."""
        now = time.monotonic()
        if self._alive_every_s is not None and now - self._alive_at >= self._alive_every_s:
            self._alive_at = now
            self.notify(ALIVE)
