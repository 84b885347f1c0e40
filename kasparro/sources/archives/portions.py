"""What reading an archive gives: batches, or why it or the rest of it is not loaded."""

import msgspec

from kasparro.model.batch import Batch
from kasparro.model.record import Reject
from kasparro.printable import one_line

# A reason quotes names and cells, which may be of any length.
REASON_LIMIT = 1_000


class Portion(msgspec.Struct, frozen=True, tag=True):
    """A batch, how many bytes of the file on disk have been read, and the damaged rows by their damage."""

    batch: Batch
    position: int
    damaged: dict[str, int] = {}


class Problem(msgspec.Struct, frozen=True, tag=True):
    """The reject of a file, or of the rest of it. `content` is the digest of its content, if it was read."""

    reject: Reject
    content: str | None = None


def file_problem(name: str, reason: str, setting: str | None = None) -> Problem:
    """The Problem of a rejected file. The reason completes "NAME: "."""
    return Problem(Reject(reason=one_line(reason)[:REASON_LIMIT], location=name, setting=setting))
