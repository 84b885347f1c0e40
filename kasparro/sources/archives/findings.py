"""What detection found about a file, question by question, for `kasparro check --explain`."""

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one question about a file, what speaks for it, and what was ruled out.

    `open` says that the file does not settle the question. The answer is then only a guess, and the file is
    rejected.
    """

    question: str
    answer: str
    evidence: tuple[str, ...]
    ruled_out: tuple[str, ...] = ()
    open: bool = False
