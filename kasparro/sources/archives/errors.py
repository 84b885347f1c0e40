"""The error that rejects a whole archive, with the setting that would settle what the archive leaves open."""

import json
from collections.abc import Mapping

import msgspec

A_GUESS = "a guess: check it"


class Guess(msgspec.Struct, frozen=True):
    """Overrides that may be right, by key, such as `currency` or `coin.id`. Only a user can confirm them.

    `remark` says what to check. A placeholder only shows the form of the value: its lines are comments.
    """

    values: Mapping[str, str | bool | tuple[str, ...] | Mapping[str, str]]
    remark: str = A_GUESS
    placeholder: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """The guess as lines of TOML, each with the remark."""
        pairs: list[tuple[str, object]] = []
        for key, value in self.values.items():
            if isinstance(value, Mapping):
                pairs += [(f"{key}.{_quoted(inner)}", of_inner) for inner, of_inner in value.items()]
            else:
                pairs.append((key, value))
        sign = "# " if self.placeholder else ""
        return tuple(f"{sign}{key} = {_quoted(value)}  # {self.remark}" for key, value in pairs)


def _quoted(value: object) -> str:
    # JSON's texts, lists and booleans are TOML too, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


class FileRejected(Exception):
    """A file is not loaded. The text completes "FILE: ".

    `guesses` are overrides that may settle what the file leaves open. `question` is what it leaves open, as a
    `Finding` calls it; None if nothing settles it.
    """

    def __init__(self, text: str, *guesses: Guess | None, question: str | None = None) -> None:
        super().__init__(text)
        self.guesses = tuple(guess for guess in guesses if guess is not None)
        self.question = question

    @property
    def setting(self) -> str | None:
        """The guesses as lines of the file's overrides."""
        return "\n".join(line for guess in self.guesses for line in guess.lines) or None
