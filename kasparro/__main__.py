"""The entry point of `kasparro` and `python -m kasparro`."""

import atexit
import gc

from kasparro.importing import importing

with importing():
    from kasparro import logs
    from kasparro.cli import commands
    from kasparro.memory import return_large_buffers
    from kasparro.settings import Settings


def run() -> None:
    """Run a command. Logging works before its settings are read, with the default settings."""
    logs.configure(Settings())
    logs.capture_crashes()
    return_large_buffers()
    # The interpreter's last collections take a tenth of a second and free nothing that the system does not.
    atexit.register(gc.freeze)
    commands.main()


if __name__ == "__main__":
    run()
