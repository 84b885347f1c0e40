"""The signals that ask a command to stop."""

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT and SIGHUP. A closing terminal sends SIGHUP, which `nohup` makes a command ignore."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP))


def ignore_stop_signals() -> None:
    """Ignore these signals, in a process that its parent ends.

    A service manager may send SIGTERM to all processes of a command.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
