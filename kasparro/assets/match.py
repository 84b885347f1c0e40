"""Compares two rows of different sources: all evidence that they are one coin, and a score."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cached_property
from typing import Any

import msgspec

from kasparro.assets.contracts import Place
from kasparro.assets.knowledge import PricePairs
from kasparro.assets.market import Finding, Verdict, compare_markets
from kasparro.assets.names import NO_NAME, WORDS, Id, Name, is_version, read_id, read_name, read_symbol
from kasparro.model.asset import Coin, Key
from kasparro.model.record import slug

# Archives give no ids of their own, so that their rows are compared by rules of their own.
ARCHIVES = "csv"
# A vetoed pair scores no more than this, whatever its names say.
VETOED = 0.3
# Labels with this score or more say that a contract which several coins share is of these two.
CORROBORATED = 0.75
# A text that more pairs of rows share says nothing. A source that sends one symbol for all its coins must
# not keep the resolver busy for hours.
COMMON_TEXT = 250_000
# A word in the names of no more coins than this says which of them is meant.
RARE_WORD = 3
# A coin whose rank is this or better is a leading coin; one of the same symbol may only be this much behind.
LEADING_RANK = 1_000
LEADING_MARGIN = 5
# The score of two rows with one symbol, by how their names relate and whether other coins of their sources
# have the symbol too.
_WITH_SYMBOL = {
    ("name", False): 0.96,
    ("name", True): 0.96,
    ("id", False): 0.95,
    ("id", True): 0.95,
    ("core", False): 0.94,
    ("core", True): 0.94,
    ("symbol as name", False): 0.92,
    ("symbol as name", True): 0.85,
    ("part", False): 0.91,
    ("part", True): 0.86,
    ("similar", False): 0.8,
    ("similar", True): 0.76,
    ("", False): 0.6,
    ("", True): 0.6,
}
_METHODS = {"id": "symbol_and_id", "": "symbol"}


class Profile:
    """A row with its names in comparable form, which is made when something is compared with it."""

    __slots__ = ("__dict__", "coin", "key", "places")

    def __init__(self, coin: Coin, places: frozenset[Place] = frozenset()) -> None:
        self.coin = coin
        self.key: Key = coin.key
        self.places = places

    @cached_property
    def symbol(self) -> str:
        """Its symbol, empty if it has none."""
        return read_symbol(self.coin.symbol)

    @cached_property
    def name(self) -> Name:
        """Its name."""
        return read_name(self.coin.name)

    @cached_property
    def id(self) -> Id:
        """The names that its id may have been made of."""
        return read_id(self.coin.source, self.coin.source_id, self.symbol)

    @cached_property
    def forms(self) -> frozenset[str]:
        """The forms of a coin that its name or id has."""
        return self.name.forms.union(*(each.forms for each in self.id.names))

    @property
    def id_texts(self) -> set[str]:
        """The texts of these names."""
        return {each.full for each in self.id.names}

    @property
    def is_bare(self) -> bool:
        """Whether it lacks a symbol or a name."""
        return not (self.symbol and self.name.full)

    @property
    def is_archive(self) -> bool:
        """Whether it comes from the user's archives."""
        return self.coin.source == ARCHIVES

    @property
    def bare_symbol(self) -> str:
        """The symbol of a row that has no name: its own, or its id if that is one word."""
        if self.symbol or len(self.id.name.words) != 1:
            return self.symbol if not self.name.full else ""
        return "" if self.name.full else self.id.name.full

    def texts(self) -> set[str]:
        """Texts of which rows of one coin share at least one."""
        names = {text for each in (self.name, *self.id.names) for text in (each.full, each.core) if text}
        found = {f"name {text}" for text in names}
        if symbol := self.symbol or self.bare_symbol:
            found.add(f"symbol {symbol}")
        if self.places:
            found.update(f"place {chain} {address}" for chain, address in self.places)
        return found


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """How well two rows match.

    `score` may be above 1, so that of two sure matches the better one is known; `shown` is at most 1.
    `evidence` is a list of JSON objects with a `kind`, a `verdict` (`for`, `against`, `veto` or `neutral`)
    and a sentence in `text`.
    """

    one: Key
    other: Key
    score: float
    method: str
    vetoed: bool
    by_contract: bool
    evidence: list[dict[str, Any]]

    @property
    def shown(self) -> float:
        """The score as links and candidates have it."""
        return min(self.score, 1.0)

    def counterpart(self, key: Key) -> Key:
        """The row that is not `key`."""
        return self.other if key == self.one else self.one

    def evidence_for(self, key: Key) -> list[dict[str, Any]]:
        """The evidence for the row `key`: it names the other row."""
        source, source_id = self.counterpart(key)
        return [{"source": source, "source_id": source_id, **each} for each in self.evidence]


class Matcher:
    """Compares rows in the light of all rows: how common words are, and which coins lead."""

    def __init__(
        self, profiles: Iterable[Profile], prices: Mapping[tuple[Key, Key], PricePairs] | None = None
    ) -> None:
        self._prices = prices or {}
        self._words: Counter[str] = Counter()
        self._bearers: Counter[tuple[str, str]] = Counter()
        self._symbols: Counter[tuple[str, str]] = Counter()
        self._siblings: dict[tuple[str, str], set[bool]] = {}
        self._by_place: dict[Place, list[Key]] = {}
        self._leaders: dict[tuple[str, str], list[tuple[int, Key]]] = {}
        for profile in profiles:
            source = profile.coin.source
            for chain_and_address in profile.places:
                self._by_place.setdefault(chain_and_address, []).append(profile.key)
            if profile.is_archive:
                continue
            self._words.update({*profile.name.words, *(w for each in profile.id.names for w in each.words)})
            if not profile.id.numbered:
                self._bearers.update((source, text) for text in {profile.name.full, *profile.id_texts})
            self._symbols[source, profile.symbol] += 1
            self._siblings.setdefault((source, profile.name.full), set()).add("old" in profile.name.remarks)
            if profile.coin.rank:
                ranks = self._leaders.setdefault((source, profile.symbol), [])
                ranks.append((profile.coin.rank, profile.key))
        for ranks in self._leaders.values():
            ranks.sort()

    def compare(self, one: Profile, other: Profile) -> Match:
        """Compare two rows of different sources."""
        if other.is_archive or (not one.is_archive and other.key < one.key):
            one, other = other, one
        found = _Evidence()
        if one.is_archive and one.is_bare:
            score, method = self._archive_id(one, other, found)
        else:
            score, method = self._labels(one, other, found)
        score, method, by_contract = self._contracts(one, other, found, score, method)
        if one.forms != other.forms:
            differing = ", ".join(sorted(one.forms ^ other.forms))
            found.add("form", "veto", f"only one of them is a {differing} form of a coin")
        pair = (one.key, other.key) if one.key < other.key else (other.key, one.key)
        market = compare_markets(one.coin, other.coin, self._prices.get(pair, ()))
        score, method = _with_market(score, method, market, found)
        if found.vetoed:
            score = min(score, VETOED)
        return Match(
            one=one.key,
            other=other.key,
            score=round(score, 3),
            method=method,
            vetoed=found.vetoed,
            by_contract=by_contract,
            evidence=found.items,
        )

    def _labels(self, one: Profile, other: Profile, found: "_Evidence") -> tuple[float, str]:
        # What symbols, names and the names in ids say.
        same_symbol = bool(one.symbol) and one.symbol == other.symbol
        if same_symbol:
            found.add("symbol", "for", f"symbols are equal: {one.coin.symbol}")
        elif one.symbol and other.symbol:
            found.add("symbol", "neutral", f"symbols differ: {one.coin.symbol} and {other.coin.symbol}")
        relation, text = _relation(one, other)
        if relation == "similar" and self._has_rare_word(one, other):
            relation = "part"
        if relation:
            found.add("name", "for", text)
        elif one.name.full and other.name.full:
            found.add("name", "neutral", f"names differ: {one.coin.name} and {other.coin.name}")
        if relation == "name" and self._has_old_sibling(one, other):
            found.add("name", "against", "one source has two coins of this name, an old and a new one")
            return (0.89 if same_symbol else 0.7), "symbol_and_name"
        if same_symbol:
            return self._with_symbol(one, other, relation, found)
        return self._without_symbol(one, other, relation, found)

    def _with_symbol(
        self, one: Profile, other: Profile, relation: str, found: "_Evidence"
    ) -> tuple[float, str]:
        shared = max(self._symbols[each.coin.source, each.symbol] for each in (one, other)) > 1
        if relation == "part" and self._has_rare_word(one, other):
            shared = False
        score = _WITH_SYMBOL[relation, shared]
        if relation not in {"name", "core"}:
            return score, _METHODS.get(relation, "symbol_and_name")
        if _ids_agree(one, other):
            found.add("id", "for", f"ids agree: {one.key[1]} and {other.key[1]}")
            return score + 0.02, "symbol_and_name"
        if one.id.numbered or other.id.numbered:
            score -= 0.02
        return score, "symbol_and_name"

    def _without_symbol(
        self, one: Profile, other: Profile, relation: str, found: "_Evidence"
    ) -> tuple[float, str]:
        if relation not in {"name", "id"}:
            return 0.4, "name"
        near = _symbols_are_near(one.symbol, other.symbol)
        agree = _ids_agree(one, other)
        if agree:
            found.add("id", "for", f"ids agree: {one.key[1]} and {other.key[1]}")
        if not self._is_distinctive(one, other):
            found.add("name", "against", "several coins have this name, or it is made of common words")
            return (0.85 if near and agree else 0.6), "name"
        if relation == "id" or agree:
            return 0.91, "name_and_id"
        return 0.85, "name"

    def _is_distinctive(self, one: Profile, other: Profile) -> bool:
        # Whether the name that both have is no other coin's at either source, and not made of common words.
        bearer = one if one.name.full in {other.name.full, other.id.name.full} else other
        name = bearer.name
        if len(name.full) < 4 or one.id.numbered or other.id.numbered:
            return False
        if any(self._bearers[each.coin.source, name.full] > 1 for each in (one, other)):
            return False
        if one.name.full == other.name.full and one.name.words != other.name.words:
            return False
        specific = [word for word in name.words if word not in WORDS.generic]
        return bool(specific) and min(map(self._frequency, specific)) <= RARE_WORD

    def _frequency(self, word: str) -> int:
        # In how many names a word is, also as the beginning of a word that ends like names of coins do.
        stems = [
            word[: -len(end)] for end in WORDS.generic if word.endswith(end) and len(word) >= len(end) + 3
        ]
        return max(self._words[each] for each in (word, *stems))

    def _has_rare_word(self, one: Profile, other: Profile) -> bool:
        # Whether the names share a word that hardly any other name has.
        shared = {*one.name.words} & {*other.name.words} - WORDS.generic - {one.symbol}
        return any(len(word) >= 5 and self._words[word] <= RARE_WORD for word in shared)

    def _has_old_sibling(self, one: Profile, other: Profile) -> bool:
        # Whether a source has an old and a new coin of this name, so that the name alone does not tell which.
        return any(
            len(self._siblings.get((each.coin.source, one.name.full), ())) > 1 for each in (one, other)
        )

    def _archive_id(self, archive: Profile, other: Profile, found: "_Evidence") -> tuple[float, str]:
        # What the id of an archive's row says that lacks a symbol or a name.
        row_id = archive.key[1].lower()
        symbol, name = slug(other.coin.symbol or ""), slug(other.coin.name or "")
        if archive.symbol and other.symbol and archive.symbol != other.symbol:
            found.add("symbol", "against", f"symbols differ: {archive.coin.symbol} and {other.coin.symbol}")
            return 0.4, "symbol"
        leader = self._means_a_leader(archive, other)
        if leader:
            found.add(
                "id", "against", f"it may mean the leading coin with the symbol {archive.bare_symbol.upper()}"
            )
        elif row_id == other.key[1].lower():
            found.add("id", "for", f"its id is that of {other.key[0]}: {other.key[1]}")
            return 0.95, "id"
        if symbol and name and row_id in {f"{symbol}-{name}", f"{name}-{symbol}"}:
            found.add("id", "for", f"its id is made of the symbol and the name: {archive.key[1]}")
            return 0.95, "id"
        named = archive.name.full or read_name(row_id).full
        if named and named == other.name.full:
            found.add("name", "for", f"it has the name: {other.coin.name}")
            alone = self._bearers[other.coin.source, other.name.full] == 1 and not leader
            return (0.93 if alone else 0.85), "name"
        if archive.bare_symbol and archive.bare_symbol == other.symbol:
            if self._leads(other):
                found.add("symbol", "for", f"it is the leading coin with the symbol {other.coin.symbol}")
                return 0.8, "symbol_and_price"
            found.add("symbol", "neutral", f"several coins have its symbol: {other.coin.symbol}")
            return 0.6, "symbol"
        return 0.4, "name"

    def _leads(self, profile: Profile) -> bool:
        ranks = self._leaders.get((profile.coin.source, profile.symbol), [])
        return (
            bool(ranks)
            and ranks[0][1] == profile.key
            and ranks[0][0] <= LEADING_RANK
            and (len(ranks) == 1 or ranks[1][0] >= LEADING_MARGIN * ranks[0][0])
        )

    def _means_a_leader(self, archive: Profile, other: Profile) -> bool:
        # Whether the id is the symbol of a leading coin, other than the one whose id or name it is.
        symbol = archive.bare_symbol
        if not symbol or symbol == other.symbol:
            return False
        ranks = self._leaders.get((other.coin.source, symbol), [])
        return bool(ranks) and ranks[0][0] <= LEADING_RANK

    def _contracts(
        self, one: Profile, other: Profile, found: "_Evidence", score: float, method: str
    ) -> tuple[float, str, bool]:
        if not one.places or not other.places:
            return score, method, False
        if shared := one.places & other.places:
            chain, address = min(shared)
            found.add(
                "contract", "for", f"they share {_count(len(shared), 'contract')}: {address} on {chain}"
            )
            if score >= CORROBORATED:
                return max(score, 0.95) + 0.02, "contract", True
            if _is_derived(one, other):
                found.add("contract", "against", "one looks like a form of the other")
                return 0.8, "contract", True
            if self._only_partners(one, other):
                found.add("contract", "for", "no other coin of either source has their contracts")
                return 0.93, "contract", True
            found.add(
                "contract", "against", "several coins share these contracts, and no name or symbol picks one"
            )
            return 0.8, "contract", True
        chains = {chain for chain, _ in one.places} & {chain for chain, _ in other.places}
        if chains:
            found.add("contract", "against", f"their contracts on {min(chains)} differ")
            return score - 0.06, method, False
        return score, method, False

    def _only_partners(self, one: Profile, other: Profile) -> bool:
        pair = {one.key, other.key}
        sources = {one.coin.source, other.coin.source}
        return all(
            key in pair or key[0] not in sources
            for each in one.places | other.places
            for key in self._by_place.get(each, ())
        )


class _Evidence:
    # Collects evidence about a pair of rows.
    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.vetoed = False

    def add(self, kind: str, verdict: str, text: str) -> None:
        self.vetoed |= verdict == "veto"
        self.items.append({"kind": kind, "verdict": verdict, "text": text})


def _relation(one: Profile, other: Profile) -> tuple[str, str]:
    # How the names relate, best first, and a sentence about it.
    mine, theirs = one.name, other.name
    if mine.words and theirs.words and _versions(mine) != _versions(theirs):
        return "", ""
    if mine.full and mine.full == theirs.full:
        return "name", f"names are equal: {one.coin.name}"
    for each, counterpart in ((one, other), (other, one)):
        if each.name.full and each.name.full == counterpart.id.name.full and not counterpart.id.numbered:
            return "id", f"the id {counterpart.key[1]} has the name {each.coin.name}"
    if mine is NO_NAME or theirs is NO_NAME:
        return "", ""
    both = f"{one.coin.name} and {other.coin.name}"
    if mine.core == theirs.core:
        text = f"names are equal without general words: {both}"
        return ("symbol as name" if mine.core == one.symbol else "core"), text
    if one.id.name.full == other.id.name.full and not one.id.numbered and not other.id.numbered:
        return "id", f"ids have the same name: {one.key[1]} and {other.key[1]}"
    for each, counterpart in ((one, other), (other, one)):
        if each.name.core == counterpart.id.name.core and not counterpart.id.numbered:
            text = f"the id {counterpart.key[1]} has the name {each.coin.name} without general words"
            return ("symbol as name" if each.name.core == one.symbol else "core"), text
    if _is_part(mine, theirs, one.symbol) or _is_part(theirs, mine, one.symbol):
        return "part", f"one name has all words of the other: {both}"
    if {mine.full, *one.id_texts} & {theirs.full, *other.id_texts} - {one.symbol}:
        return "similar", f"a name or an id is in both: {one.key[1]} and {other.key[1]}"
    if _are_similar(mine, theirs):
        return "similar", f"names are similar: {both}"
    return "", ""


def _ids_agree(one: Profile, other: Profile) -> bool:
    # Whether both ids have the name, and neither has a number because the id without it was taken.
    return (
        not one.id.numbered
        and not other.id.numbered
        and one.id.name.full == other.id.name.full
        and one.id.name.full in {one.name.full, other.name.full}
    )


def _is_part(short: Name, long: Name, symbol: str) -> bool:
    # Whether all words of one name are in the other. A name that only repeats the symbol adds nothing to it.
    words = {word for word in short.words if word not in WORDS.generic}
    if not words < set(long.words) or max(map(len, words - {symbol}), default=0) < 3:
        return False
    extra = {
        word for word in long.words if word not in words and word not in WORDS.generic and word != symbol
    }
    return not any(word in WORDS.distinguishing or word in long.qualifiers for word in extra)


def _versions(name: Name) -> frozenset[str]:
    return frozenset(filter(is_version, name.words))


def _are_similar(one: Name, other: Name) -> bool:
    different = set(one.words) ^ set(other.words)
    if one.qualifiers != other.qualifiers or different & WORDS.distinguishing:
        return False
    shared = {word for word in {*one.words} & {*other.words} if len(word) >= 4 and word not in WORDS.generic}
    matcher = SequenceMatcher(None, one.core, other.core, autojunk=False)
    return bool(shared) or (matcher.quick_ratio() >= 0.8 and matcher.ratio() >= 0.8)


def _symbols_are_near(one: str, other: str) -> bool:
    short, long = sorted((one, other), key=len)
    return len(short) >= 3 and short in long


def _is_derived(one: Profile, other: Profile) -> bool:
    # Whether one symbol is the other with letters before or behind it, as WETH and ETH or USDC.e and USDC, or
    # one name has words in brackets that the other row lacks, as "SOL (Wormhole)".
    short, long = sorted((one.symbol, other.symbol), key=len)
    if short and short != long and (long.startswith(short) or long.endswith(short)):
        return True
    return any(
        each.name.qualifiers
        - {each.symbol}
        - {word for name in (rest.name, *rest.id.names) for word in name.words}
        for each, rest in ((one, other), (other, one))
    )


def _with_market(score: float, method: str, market: Sequence[Finding], found: _Evidence) -> tuple[float, str]:
    for each in market:
        found.add(each.kind, "neutral" if each.weak else each.verdict.value, each.text)
    agreeing = {each.kind for each in market if each.verdict is Verdict.AGREES and not each.weak}
    weakly = {each.kind for each in market if each.verdict is Verdict.AGREES}
    score -= 0.045 * sum(each.verdict is Verdict.DIFFERS for each in market)
    if method == "symbol_and_price":
        # The prices of a leading coin that is pegged to the dollar agree as well.
        return (score + 0.12 if "price" in weakly else score), method
    if "price" not in weakly:
        return score, method
    if score >= 0.75:
        # A price and a supply or cap that agree tell two coins of one name apart better than an id does.
        bonus = 0.06 if len(agreeing) > 1 else 0.02 if agreeing else 0.01
        return score + bonus, method
    if score >= 0.6 and agreeing:
        return score + 0.2, method
    return score, method


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def candidate_pairs(
    profiles: Sequence[Profile], is_open: Callable[[Profile], bool]
) -> list[tuple[Profile, Profile]]:
    """Pairs of rows of different sources that share a text, of which at least one is open, each once."""
    if len({profile.coin.source for profile in profiles}) < 2:
        return []
    buckets: dict[str, list[Profile]] = {}
    for profile in profiles:
        for key in profile.texts():
            buckets.setdefault(key, []).append(profile)
    pairs: dict[tuple[Key, Key], tuple[Profile, Profile]] = {}
    for bucket in buckets.values():
        if len(bucket) == 1:
            continue
        sources = {each.coin.source for each in bucket}
        if len(sources) == 1:
            continue
        open_rows = list(filter(is_open, bucket))
        if len(open_rows) * len(bucket) > COMMON_TEXT:
            continue
        for one in open_rows:
            for other in bucket:
                if other.coin.source != one.coin.source:
                    first, second = (one, other) if one.key < other.key else (other, one)
                    pairs.setdefault((first.key, second.key), (first, second))
    return [pairs[key] for key in sorted(pairs)]
