"""The program: `kasparro`, and `python -m kasparro`."""

from kasparro import logs
from kasparro.cli import commands
from kasparro.settings import Settings


def run() -> None:
    """Run a command, with a log also for what happens before its settings are read."""
    logs.configure(Settings())
    logs.capture_crashes()
    commands.main()


if __name__ == "__main__":
    run()
