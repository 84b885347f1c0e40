"""The program: `kasparro`, and `python -m kasparro`."""

from kasparro import cli, logs
from kasparro.settings import Settings


def run() -> None:
    """Run a command, with a log also for what happens before its settings are read."""
    logs.configure(Settings())
    logs.capture_crashes()
    cli.main()


if __name__ == "__main__":
    run()
