"""Normalises symbols, names and ids, so that two spellings of one coin become equal texts."""

import re
import tomllib
import unicodedata
from functools import lru_cache
from importlib import resources

import msgspec


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What words mean: the content of words.toml."""

    generic: frozenset[str]
    remarks: frozenset[str]
    remark_beginnings: frozenset[str]
    distinguishing: frozenset[str]
    forms: dict[str, frozenset[str]]
    signs: dict[str, str]


WORDS = msgspec.convert(
    tomllib.loads(resources.files(__package__).joinpath("words.toml").read_text("utf-8")), Words
)
_SIGNS = str.maketrans(WORDS.signs)
_FORM_OF = {word: form for form, words in WORDS.forms.items() for word in words}
_BRACKETS = re.compile(r"[(\[{]([^()\[\]{}]*)[)\]}]")
# Words of letters and digits; a point between digits belongs to the word: 2.0.
_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+")
_NUMBERED = re.compile(r"-\d{1,2}$")
_VERSION = re.compile(r"v?\d+(\.\d+)*|i{2,3}|iv")
# Ids of CoinGecko for coins that share an id otherwise: eusd-27a558b0-8b5b-….
_UUID = re.compile(r"-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
# More text than any name needs; the time to normalise it grows with its length.
_LIMIT = 120


class Name(msgspec.Struct, frozen=True, gc=False):
    """A name in its parts.

    `words` are the words that count, `qualifiers` those of them that stood in brackets. `remarks` are left
    out of the words. `full` is all words without spaces, `core` the same without generic words.
    """

    words: tuple[str, ...] = ()
    qualifiers: frozenset[str] = frozenset()
    remarks: frozenset[str] = frozenset()
    full: str = ""
    core: str = ""

    @property
    def forms(self) -> frozenset[str]:
        """The forms of a coin that the words name, such as `wrapped`."""
        return frozenset(_FORM_OF[word] for word in self.words if word in _FORM_OF)


NO_NAME = Name()


def fold(text: str) -> str:
    """The text in lower case, without accents, invisible characters and signs for letters."""
    if text.isascii():
        return text[:_LIMIT].lower().translate(_SIGNS)
    text = unicodedata.normalize("NFKD", text[:_LIMIT]).casefold().translate(_SIGNS)
    return "".join(sign for sign in text if unicodedata.category(sign) not in {"Mn", "Cf", "Cc"})


@lru_cache(65_536)
def read_symbol(text: str | None) -> str:
    """A symbol in a form that can be compared; empty if there is none."""
    folded = fold(text or "")
    return "".join(_WORD.findall(folded)) or folded.strip()


def read_name(text: str | None) -> Name:
    """The parts of a name."""
    return _read(fold(text or ""))


@lru_cache(65_536)
def _read(folded: str) -> Name:
    qualifiers: list[str] = []
    remarks: list[str] = []
    for content in _BRACKETS.findall(folded):
        words = _WORD.findall(content)
        if words and (words[0] in WORDS.remark_beginnings or WORDS.remarks.issuperset(words)):
            remarks += words
        else:
            qualifiers += words
    words = _WORD.findall(_BRACKETS.sub(" ", folded))
    while len(words) > 1 and words[-1] in WORDS.remarks and words[-1] not in {"new", "omni"}:
        remarks.append(words.pop())
    every = (*words, *qualifiers)
    if not every:
        # The whole name was a remark, or it has neither letters nor digits: it is compared as it is.
        text = folded.strip()
        return Name((text,), frozenset(), frozenset(), text, text) if text else NO_NAME
    core = [word for word in every if word not in WORDS.generic] or every
    return Name(tuple(every), frozenset(qualifiers), frozenset(remarks), "".join(every), "".join(core))


class Id(msgspec.Struct, frozen=True, gc=False):
    """The names that an id may have been made of.

    `name` is the most likely one, and `names` are all of them. `numbered` says whether a number was appended
    because the id without it was taken by another coin.
    """

    name: Name
    names: tuple[Name, ...]
    numbered: bool


@lru_cache(65_536)
def read_id(source: str, source_id: str, symbol: str) -> Id:
    """The names in an id; `symbol` as `read_symbol` returns it.

    Ids keep the name that a coin had when its source first listed it. CoinPaprika writes the symbol before
    it. At other sources the symbol may be before or after the name.
    """
    folded = fold(source_id)
    text = _NUMBERED.sub("", _UUID.sub("", folded))
    spellings = [folded, text]
    first, _, rest = text.partition("-")
    if rest and (source == "coinpaprika" or first == symbol or not symbol):
        spellings.append(rest)
    before, _, last = text.rpartition("-")
    if before and (last in {symbol, "old", "new"} or not symbol):
        spellings.append(before)
    name = _read(rest if rest and source == "coinpaprika" else text)
    return Id(name, tuple(dict.fromkeys(map(_read, spellings))), text != folded)


def is_version(word: str) -> bool:
    """Whether a word counts versions of a coin: v2, 2.0, III."""
    return _VERSION.fullmatch(word) is not None
