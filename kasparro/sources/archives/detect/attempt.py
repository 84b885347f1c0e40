"""Detects the format of a file and, if questions stay open, finds all of them in one attempt.

Each open question is answered by its guess, so that the questions behind it show too. A file with open
questions is rejected; nothing is loaded by a guess.
"""

from datetime import datetime

import msgspec

from kasparro.sources.archives.detect import Detection, detect
from kasparro.sources.archives.detect.sample import Sample, read_sample
from kasparro.sources.archives.errors import FileRejected
from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.known_coins import LEADING_COINS, KnownCoins
from kasparro.sources.archives.overrides import NO_OVERRIDES, Overrides, with_guesses

# More questions than a file can leave open.
_QUESTIONS_LIMIT = 12


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an attempt: `open` has the questions that the file leaves open.

    `detection` is the format with all guesses; None if a question has no guess.
    """

    sample: Sample | None
    detection: Detection | None
    open: tuple[FileRejected, ...]

    @property
    def rejected(self) -> FileRejected | None:
        """One error that names everything that is open; None if nothing is."""
        if len(self.open) <= 1:
            return self.open[0] if self.open else None
        guesses = [guess for rejected in self.open for guess in rejected.guesses]
        return FileRejected("; ".join(map(str, self.open)), *guesses)


async def attempt(
    file: ArchiveFile,
    name: str,
    now: datetime,
    overrides: Overrides = NO_OVERRIDES,
    known_coins: KnownCoins = LEADING_COINS,
) -> Attempt:
    """Detect the format of a file called `name`, and everything that it leaves open."""
    open_questions: list[FileRejected] = []
    sample = None
    while True:
        try:
            sample = await read_sample(file, overrides)
            detection = detect(sample, name, now, overrides, known_coins)
        except FileRejected as rejected:
            open_questions.append(rejected)
            guessed = with_guesses(overrides, rejected.guesses)
            if guessed == overrides or len(open_questions) == _QUESTIONS_LIMIT:
                return Attempt(sample=sample, detection=None, open=tuple(open_questions))
            overrides = guessed
        else:
            return Attempt(sample=sample, detection=detection, open=tuple(open_questions))


async def detect_file(
    file: ArchiveFile, name: str, now: datetime, overrides: Overrides, known_coins: KnownCoins
) -> tuple[Sample, Detection]:
    """The sample and the format of a file. Raises FileRejected, which names everything that is open."""
    attempted = await attempt(file, name, now, overrides, known_coins)
    if attempted.rejected is not None:
        raise attempted.rejected
    if attempted.sample is None or attempted.detection is None:
        raise AssertionError("an attempt without open questions has a format")
    return attempted.sample, attempted.detection
