"""The entry point of `kasparro` and `python -m kasparro`."""

import atexit
import gc

# Nothing that is imported is garbage, and looking for it takes an eighth of the time of the imports.
gc.disable()

from kasparro import logs  # noqa: E402
from kasparro.cli import commands  # noqa: E402
from kasparro.memory import return_large_buffers  # noqa: E402
from kasparro.settings import Settings  # noqa: E402

gc.enable()


def run() -> None:
    """Run a command. Logging works before its settings are read, with the default settings."""
    logs.configure(Settings())
    logs.capture_crashes()
    return_large_buffers()
    # What is imported stays, so later collections need not look at it.
    gc.freeze()
    # The interpreter's last collections take a tenth of a second and free nothing that the system does not.
    atexit.register(gc.freeze)
    commands.main()


if __name__ == "__main__":
    run()
