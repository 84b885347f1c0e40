"""The entry point of `kasparro` and `python -m kasparro`."""

from kasparro import logs
from kasparro.cli import commands
from kasparro.settings import Settings


def run() -> None:
    """Run a command. Logging works before its settings are read, with the default settings."""
    logs.configure(Settings())
    logs.capture_crashes()
    commands.main()


if __name__ == "__main__":
    run()
