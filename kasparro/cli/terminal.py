"""Consoles for the commands, which escape text from outside, so that it cannot control the terminal."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from kasparro.printable import printable, printable_json, printable_lines


class PrintableConsole(Console):
    """A rich console for plain text: no markup, no emoji codes, no control characters.

    Strings are escaped before they are measured, so that tables stay aligned. Other renderables are escaped
    when they are written. Only the control codes of rich itself, which move a progress bar, are not escaped.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string. A table wraps a string that is too wide, and truncates nothing."""
        return super().render_str(printable(text), **{"overflow": "fold", **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the segments of a renderable."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


def print_problem(console: Console, problem: str, setting: str | None, *, soft_wrap: bool = True) -> None:
    """Print why a file is rejected. The lines of `setting`, which may end the text, can be copied."""
    lines = setting.split("\n") if setting else []
    for line in (problem.removesuffix(setting or "").rstrip(), *lines):
        console.print(line, soft_wrap=soft_wrap)


out = PrintableConsole()
err = PrintableConsole(stderr=True)


def write_json(encoded: bytes) -> None:
    """Write one JSON document to stdout, with unsafe characters as JSON escapes."""
    sys.stdout.write(printable_json(encoded.decode()) + "\n")
