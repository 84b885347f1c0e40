"""What commands print on: consoles that show text from outside and never obey it."""

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from kasparro.printable import printable, printable_json, printable_lines


class PrintableConsole(Console):
    """A rich console for plain text: no markup, no emoji codes, no control characters.

    Strings are escaped before they are measured, so that tables stay aligned. Whatever else is rendered is
    escaped on its way out; only rich's own control codes, which move a progress bar, pass.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as rich measures and renders it. A table folds what is too wide, and cuts nothing."""
        return super().render_str(printable(text), **{"overflow": "fold", **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is printed."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


out = PrintableConsole()
err = PrintableConsole(stderr=True)


def write_json(encoded: bytes) -> None:
    """Write one JSON document to stdout, for programs and for people who look at it in a terminal."""
    sys.stdout.write(printable_json(encoded.decode()) + "\n")
