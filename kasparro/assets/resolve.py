"""Decides which rows are the same coin."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import msgspec

from kasparro.assets.contracts import places_by_row
from kasparro.assets.knowledge import Knowledge
from kasparro.assets.market import Verdict, continues
from kasparro.assets.match import Match, Matcher, Profile, candidate_pairs
from kasparro.assets.names import read_name, read_symbol
from kasparro.assets.rules import NO_RULES, Rule, Rules
from kasparro.model.asset import ALWAYS, FOREVER, RESERVED, Asset, Candidate, Coin, Key, Link, Resolution
from kasparro.model.record import slug

# Identifies the built-in rules: a new version of them judges all rows without a link again.
VERSION = "1"
# The lowest score that links.
BAR = 0.9
# The lowest score of a candidate.
CANDIDATE_BAR = 0.75
# Two rows of one source whose scores differ by no more than this are rivals: neither is linked.
MARGIN = 0.015
CANDIDATES_PER_ROW = 3
# The source whose ids become the ids of assets, and the order in which sources name an asset.
NAMING_SOURCES = ("coinpaprika", "coingecko")
# A new id takes over if it appears no earlier than this before the last record of the old one.
OVERLAP = timedelta(days=1)
ALONE, RULE, CHANGED_ID = "alone", "rule", "changed_id"
_TICK = timedelta(microseconds=1)


def resolve(knowledge: Knowledge, rules: Rules = NO_RULES) -> Resolution:
    """Decide the rows that have no link or other labels than their link, and what rules say.

    Every row that stays without a link is among the candidates, with the symbol and name that were judged.
    """
    return Resolver(knowledge, rules).resolve()


def resolve_by_labels(knowledge: Knowledge, rules: Rules = NO_RULES) -> Resolution | None:
    """The same resolution, if it is the same whatever the figures and times of the rows are; else None.

    Besides the rows' ids, symbols, names and `listed`, it then depends only on what is known about links,
    assets, candidates and contracts.
    """
    try:
        return Resolver(knowledge, rules, by_labels=True).resolve()
    except _FiguresCount:
        return None


def open_pairs(knowledge: Knowledge, resolution: Resolution) -> Sequence[tuple[Key, Key]]:
    """The pairs of rows for which prices at the same moments could settle a candidate: keys of
    `Knowledge.prices`, the most likely ones first."""
    known = {coin.key for coin in knowledge.coins}
    pairs: dict[tuple[Key, Key], None] = {}
    for each in sorted(resolution.candidates, key=lambda each: -each.score):
        key = (each.source, each.source_id)
        for item in each.evidence[:1]:
            other = (item.get("source"), item.get("source_id"))
            if other in known and other != key:
                pairs.setdefault((key, other) if key < other else (other, key))
    return list(pairs)


class _FiguresCount(Exception):
    # A decision that should follow from labels alone depends on the figures or times of rows.
    pass


class Group:
    """Rows that are taken to be one coin: at most one current row of each source."""

    __slots__ = ("asset", "members")

    def __init__(self, members: dict[str, Key], asset: str | None = None) -> None:
        self.members = members
        self.asset = asset


class Resolver:
    """One resolution: the state while rows are decided. With `by_labels`, `resolve` raises an error where
    figures or times of rows count.
    """

    def __init__(self, knowledge: Knowledge, rules: Rules, *, by_labels: bool = False) -> None:
        self._knowledge = knowledge
        self._rules = rules
        self._by_labels = by_labels
        places = places_by_row(knowledge.contracts)
        coins = sorted(knowledge.coins, key=lambda coin: coin.key)
        self.profiles = {coin.key: Profile(coin, places.get(coin.key, frozenset())) for coin in coins}
        self.matcher = Matcher(self.profiles.values(), knowledge.prices)
        self._current: dict[Key, Link] = {}
        self._former: dict[Key, Link] = {}
        for link in sorted(knowledge.links, key=lambda link: (link.valid_until, link.key)):
            (self._current if link.valid_until >= FOREVER else self._former)[link.key] = link
        self._links_of_asset: dict[str, int] = {}
        for link in knowledge.links:
            self._links_of_asset[link.asset] = self._links_of_asset.get(link.asset, 0) + 1
        self._groups: dict[str, Group] = {}
        self._group_of: dict[Key, Group] = {}
        for key in sorted(self._current):
            self._place(key, self._current[key].asset)
        self._taken = {*RESERVED, *knowledge.assets, *(link.asset for link in knowledge.links)}
        # An id that has its former symbol and name again may be the former coin again.
        self._blocked: set[tuple[Key, str]] = {
            (key, link.asset) for key, link in self._former.items() if not self._has_labels_of(key, link)
        }
        self._begins = {(link.source, link.asset, link.valid_from) for link in knowledge.links}
        self._parted: set[tuple[Key, Key]] = set()
        self._ruled: set[Key] = set()
        self._relabelled: set[Key] = set()
        self._matches: dict[Key, list[Match]] = {}
        self._by_pair: dict[tuple[Key, Key], Match] = {}
        self._reasons: dict[Key, Match] = {}
        self._touched: set[str] = set()
        # Ids that a new id replaces in this resolution, with the group of both; and by the new id, the old
        # one, the moment and the evidence.
        self._replaced: dict[Key, Group] = {}
        self._successors: dict[Key, tuple[Key, datetime, Match]] = {}
        # The asset that a row had by a rule which is gone.
        self._unruled: dict[Key, str] = {}
        self._ended: dict[Key, datetime] = {}
        self._new: dict[Key, Link] = {}
        self._conflicts: dict[Key, Candidate] = {}

    def resolve(self) -> Resolution:
        """Decide everything that is open."""
        self._apply_rules()
        for key, link in sorted(self._current.items()):
            self._check_labels(key, link)
        self._match()
        archive = {key for key, profile in self.profiles.items() if profile.is_archive}
        ordered = sorted(self._by_pair.values(), key=lambda match: (-match.score, match.one, match.other))
        ordered = [match for match in ordered if match.score >= BAR and not match.vetoed]
        of_sources = [match for match in ordered if match.one not in archive and match.other not in archive]
        of_archives = [match for match in ordered if match.one in archive or match.other in archive]
        # A row that has found its coin is no rival any more, so that others may be decided.
        changed = True
        while changed:
            changed = self._join_best(of_sources)
            changed |= self._follow_changed_ids()
            changed |= self._join_best(of_archives)
            changed |= self._found_assets()
        self._link_successors()
        self._link_members()
        return Resolution(
            assets=self._assets(),
            ended=dict(sorted(self._ended.items())),
            links=[self._new[key] for key in sorted(self._new)],
            candidates=[*self._kept_conflicts(), *self._candidates()],
        )

    def _use_figures(self) -> None:
        if self._by_labels:
            raise _FiguresCount

    def matches_of(self, key: Key) -> list[Match]:
        """All rows that share a text or contract with a row, compared with it, best first."""
        pairs = candidate_pairs(list(self.profiles.values()), lambda profile: profile.key == key)
        found = [self.matcher.compare(*pair) for pair in pairs]
        return sorted(found, key=lambda match: (-match.score, match.counterpart(key)))

    def asset_of(self, key: Key) -> str | None:
        """The asset of a row as it is decided now."""
        group = self._group_of.get(key)
        return group.asset if group else None

    # Rules of the user

    def _apply_rules(self) -> None:
        if self._rules != NO_RULES:
            # Ranks decide which rows leave an asset, and which one names it.
            self._use_figures()
        for rule in self._rules.parts:
            for row in rule.rows:
                if rule.asset is not None:
                    self._blocked.add((row, rule.asset))
            if rule.asset is None:
                self._parted.update(combinations(sorted(rule.rows), 2))
        self._ruled = {row for rule in self._rules.links for row in rule.rows}
        for key in sorted(self._current):
            if self._current[key].method == RULE and key not in self._ruled:
                self._unruled[key] = self._current[key].asset
                self._release(key)
        # Rules that name an asset come first, so that no other rule gives its id away.
        for rule in sorted(self._rules.links, key=lambda rule: rule.asset is None):
            self._apply_link(rule)
        for rule in self._rules.parts:
            self._apply_part(rule)

    def _apply_link(self, rule: Rule) -> None:
        present = [row for row in rule.rows if row in self.profiles]
        if not present:
            return
        asset = rule.asset or next(
            (self._current[row].asset for row in present if row in self._current), None
        )
        if asset is None:
            asset = self._new_id(present)
        self._taken.add(asset)
        self._touched.add(asset)
        group = self._groups.setdefault(asset, Group({}, asset))
        for row in present:
            held = group.members.get(row[0])
            if held is not None and held != row:
                self._release(held)
                self._blocked.add((held, asset))
            link = self._current.get(row)
            if link is not None and link.asset != asset:
                self._release(row)
            if link is None or link.asset != asset or link.method != RULE:
                others = [{"source": each[0], "source_id": each[1]} for each in rule.rows if each != row][:1]
                text = f"a rule links it: {rule.reason}" if rule.reason else "a rule links it"
                evidence = [
                    {**other, "kind": RULE, "verdict": "for", "text": text} for other in others or [{}]
                ]
                self._write_link(row, asset, RULE, 1.0, evidence)
            self._place(row, asset)

    def _apply_part(self, rule: Rule) -> None:
        by_group: dict[str, list[Key]] = {}
        for row in rule.rows:
            if (asset := self.asset_of(row)) is not None and row not in self._ruled:
                by_group.setdefault(asset, []).append(row)
        for asset, rows in sorted(by_group.items()):
            if rule.asset is not None:
                leaving = rows if asset == rule.asset else []
            else:
                linked = any(self.asset_of(row) == asset for row in rule.rows if row in self._ruled)
                leaving = self._ordered(rows)[0 if linked else 1 :]
            for row in leaving:
                self._release(row)

    # Rows with another symbol or name than their link

    def _check_labels(self, key: Key, link: Link) -> None:
        profile = self.profiles.get(key)
        if profile is None or key in self._ended or link.method == RULE or key in self._ruled:
            return
        coin = profile.coin
        if (coin.symbol, coin.name) == (link.symbol, link.name):
            return
        same_symbol = not (coin.symbol and link.symbol) or profile.symbol == read_symbol(link.symbol)
        same_name = not (coin.name and link.name) or profile.name.full == read_name(link.name).full
        if same_symbol and same_name:
            self._confirm(key, link, [])
            return
        self._use_figures()
        self._relabelled.add(key)
        label = (
            "a symbol and a name"
            if not same_symbol and not same_name
            else ("a name" if same_symbol else "a symbol")
        )
        was = " ".join(filter(None, (link.symbol, link.name)))
        now = " ".join(filter(None, (coin.symbol, coin.name)))
        change = {
            "kind": "label",
            "verdict": "against",
            "text": f"it has {label} that it was not linked with: {now}, before: {was}",
        }
        veto, support = self._continuity(key, link)
        partly = same_symbol or same_name
        if support and not veto:
            self._confirm(key, link, [change, support])
        elif partly and not veto:
            text = "its symbol is the same" if same_symbol else "its name is the same"
            self._confirm(key, link, [change, {"kind": "label", "verdict": "for", "text": text}])
        elif veto and not partly:
            since = self._knowledge.relabelled.get(key)
            self._ended[key] = since.since if since else coin.observed_at
            self._leave(key)
            self._blocked.add((key, link.asset))
            self._conflicts[key] = self._conflict(
                coin, link, f"the id now means another coin: {now}, before: {was}", [change, veto]
            )
        else:
            why = [change, veto] if veto else [change]
            self._conflicts[key] = self._conflict(
                coin, link, f"it may be another coin now: {now}, before: {was}", why
            )

    def _continuity(self, key: Key, link: Link) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        # What speaks against and for the row being the coin that it was: its own earlier record, and the
        # other rows of the asset.
        veto = support = None
        profile = self.profiles[key]
        if (relabelled := self._knowledge.relabelled.get(key)) is not None:
            match continues(relabelled.before, profile.coin):
                case Verdict.FAR:
                    veto = _item("continuity", "veto", "price or supply jumped when the label changed")
                case Verdict.AGREES:
                    support = _item("continuity", "for", "price and supply continued when the label changed")
        for other in sorted(self._groups[link.asset].members.values()):
            if other == key or other not in self.profiles:
                continue
            counterpart = self.profiles[other]
            for item in self.matcher.compare(profile, counterpart).evidence_for(key):
                # The id still has the earlier name, which shows nothing about the coin that it means now.
                shows = item["kind"] in {"contract", "price"} or (
                    item["kind"] == "name" and profile.name.core == counterpart.name.core
                )
                if item["verdict"] == "veto":
                    veto = veto or item
                elif item["verdict"] == "for" and shows:
                    support = support or item
        return veto, support

    def _confirm(self, key: Key, link: Link, evidence: list[dict[str, Any]]) -> None:
        # Keeps the link, with the symbol and name that the row has now.
        coin = self.profiles[key].coin
        self._new[key] = Link(
            source=key[0],
            source_id=key[1],
            asset=link.asset,
            method=link.method,
            score=link.score,
            evidence=[*(each for each in link.evidence if each.get("kind") != "label"), *evidence],
            symbol=coin.symbol,
            name=coin.name,
            valid_from=link.valid_from,
        )
        self._touched.add(link.asset)

    def _conflict(self, coin: Coin, link: Link, reason: str, evidence: list[dict[str, Any]]) -> Candidate:
        return Candidate(
            source=coin.source,
            source_id=coin.source_id,
            kind="conflict",
            asset=link.asset,
            score=0.0,
            reason=reason,
            evidence=evidence,
            symbol=coin.symbol,
            name=coin.name,
        )

    def _kept_conflicts(self) -> Iterator[Candidate]:
        # Conflicts of this resolution, and earlier ones of ids that mean another coin, until their labels
        # change.
        yield from (self._conflicts[key] for key in sorted(self._conflicts))
        for each in self._knowledge.candidates:
            key = (each.source, each.source_id)
            former, profile = self._former.get(key), self.profiles.get(key)
            if (
                each.kind == "conflict"
                and key not in self._conflicts
                and key not in self._ruled
                and former is not None
                and former.asset == each.asset
                and profile is not None
                and (profile.coin.symbol, profile.coin.name) == (each.symbol, each.name)
            ):
                yield each

    # Matching

    def _match(self) -> None:
        decided = {
            key
            for key in self.profiles
            if key in self._group_of or key in self._conflicts or self._is_retired(key)
        }
        open_rows = {key for key in self.profiles if key not in decided or self._is_open(key)}
        movable = {key for key in decided if self._is_movable(key)}
        considered = open_rows | {
            key for key in movable if self.profiles[key].places or key in self._relabelled
        }
        if not considered:
            return
        pairs = candidate_pairs(list(self.profiles.values()), lambda profile: profile.key in considered)
        if pairs:
            self._use_figures()
        for one, other in pairs:
            found = self.matcher.compare(one, other)
            pair = {one.key, other.key}
            if not (pair & open_rows or found.by_contract or pair & self._relabelled):
                continue
            self._by_pair[one.key, other.key] = found
            self._matches.setdefault(one.key, []).append(found)
            self._matches.setdefault(other.key, []).append(found)

    def _is_open(self, key: Key) -> bool:
        return key not in self._group_of and not self._is_retired(key)

    def _is_retired(self, key: Key) -> bool:
        # Whether its link ended because its source gave the coin a new id.
        if key in self._replaced:
            return True
        link, profile = self._former.get(key), self.profiles.get(key)
        if link is None or profile is None or key in self._current or key in self._ruled:
            return False
        group = self._groups.get(link.asset)
        return (
            self._has_labels_of(key, link)
            and (key[0], link.asset, link.valid_until) in self._begins
            # A rule may have taken the new id out of the asset since.
            and group is not None
            and key[0] in group.members
        )

    def _has_labels_of(self, key: Key, link: Link) -> bool:
        profile = self.profiles.get(key)
        return profile is not None and (profile.coin.symbol, profile.coin.name) == (link.symbol, link.name)

    def _is_movable(self, key: Key) -> bool:
        # Whether it has an asset that never had another row.
        link = self._current.get(key)
        return (
            link is not None
            and link.method == ALONE
            and key not in self._ended
            and self._links_of_asset[link.asset] == 1
            and (group := self._group_of.get(key)) is not None
            and len(group.members) == 1
        )

    def _join_best(self, matches: Iterable[Match]) -> bool:
        joined = False
        for match in matches:
            one, other = self._group(match.one), self._group(match.other)
            if one is other or not self._may_join(one, other, match):
                continue
            if self._has_rival(match.one, match.other, match) or self._has_rival(
                match.other, match.one, match
            ):
                continue
            self._join(one, other, match)
            joined = True
        return joined

    def _group(self, key: Key) -> Group:
        return self._group_of.get(key) or self._group_of.setdefault(key, Group({key[0]: key}))

    def _may_join(self, one: Group, other: Group, match: Match) -> bool:
        if one.members.keys() & other.members.keys():
            return False
        if one.asset and other.asset:
            # Rows that have assets of their own were judged by their labels when they got them.
            is_new = match.by_contract or bool({match.one, match.other} & self._relabelled)
            if not is_new or not (self._is_mobile(one) or self._is_mobile(other)):
                return False
        for mine in one.members.values():
            if (other.asset and (mine, other.asset) in self._blocked) or self._is_retired(mine):
                return False
            if any(self._excludes(mine, theirs) for theirs in other.members.values()):
                return False
        return not any(
            (one.asset and (theirs, one.asset) in self._blocked) or self._is_retired(theirs)
            for theirs in other.members.values()
        )

    def _excludes(self, one: Key, other: Key) -> bool:
        # Whether a rule or a veto keeps two rows apart.
        pair = (one, other) if one < other else (other, one)
        found = self._by_pair.get(pair)
        return pair in self._parted or (found is not None and found.vetoed)

    def _is_mobile(self, group: Group) -> bool:
        return all(self._is_movable(key) for key in group.members.values())

    def _has_rival(self, key: Key, other: Key, match: Match) -> bool:
        # Whether another row of the source of `other` matches `key` as well, and has no better match.
        group = self._group(key)
        for rival_match in self._matches.get(key, ()):
            rival = rival_match.counterpart(key)
            if (
                rival != other
                and rival[0] == other[0]
                and not rival_match.vetoed
                and rival_match.score >= max(match.score - MARGIN, CANDIDATE_BAR)
                and (its_group := self._group(rival)) is not group
                and self._may_join(group, its_group, rival_match)
                and not self._has_better(rival, key, rival_match.score)
            ):
                return True
        return False

    def _has_better(self, key: Key, other: Key, score: float) -> bool:
        group = self._group(key)
        return any(
            match.score > score + MARGIN
            and (partner := match.counterpart(key)) != other
            and partner[0] == other[0]
            and not match.vetoed
            and self._may_join(group, self._group(partner), match)
            for match in self._matches.get(key, ())
        )

    def _join(self, one: Group, other: Group, match: Match) -> None:
        if one.asset and other.asset:
            # One of them had an asset of its own, which it leaves.
            stays, leaves = (one, other) if not self._is_mobile(one) else (other, one)
            if self._is_mobile(one) and self._is_mobile(other):
                stays, leaves = sorted(
                    (one, other), key=lambda group: min(map(self._precedence, group.members.values()))
                )
            for key in leaves.members.values():
                self._ended[key] = ALWAYS
            leaves.asset = None
        else:
            stays, leaves = (one, other) if one.asset else (other, one)
        stays.members |= leaves.members
        for key in leaves.members.values():
            self._group_of[key] = stays
        for key in (match.one, match.other):
            self._reasons.setdefault(key, match)

    # A source gives a coin a new id

    def _follow_changed_ids(self) -> bool:
        unlisted: dict[str, list[Profile]] = {}
        for key, profile in self.profiles.items():
            if profile.coin.listed is False and self._has_asset(key) and key not in self._ruled:
                for text in profile.texts():
                    unlisted.setdefault(f"{key[0]} {text}", []).append(profile)
        if not unlisted:
            return False
        followed = False
        found: dict[Key, list[tuple[float, Key, Match]]] = {}
        for key, profile in self.profiles.items():
            if profile.coin.listed is not True or self._has_asset(key) or self._is_retired(key):
                continue
            olds = {old.key: old for text in profile.texts() for old in unlisted.get(f"{key[0]} {text}", ())}
            for old in olds.values():
                if (match := self._succeeds(profile, old)) is not None:
                    found.setdefault(old.key, []).append((-match.score, key, match))
        for old_key, successors in sorted(found.items()):
            successors.sort()
            if len(successors) > 1 and successors[1][0] - successors[0][0] <= MARGIN:
                continue
            _, key, match = successors[0]
            if not self._has_asset(key):
                self._hand_over(old_key, key, match)
                followed = True
        return followed

    def _has_asset(self, key: Key) -> bool:
        return (group := self._group_of.get(key)) is not None and (
            group.asset is not None or len(group.members) > 1
        )

    def _succeeds(self, new: Profile, old: Profile) -> Match | None:
        # The evidence that `new` is the coin that had the id of `old`; None if there is too little.
        self._use_figures()
        if new.coin.first_seen_at < old.coin.observed_at - OVERLAP:
            return None
        group = self._group(old.key)
        if group.asset is not None and (new.key, group.asset) in self._blocked:
            return None
        if any(self._excludes(new.key, each) for each in group.members.values()):
            return None
        match = self.matcher.compare(new, old)
        if match.score < BAR or match.vetoed:
            return None
        if match.by_contract or continues(old.coin, new.coin) is Verdict.AGREES:
            return match
        return None

    def _hand_over(self, old: Key, new: Key, match: Match) -> None:
        group = self._group_of.pop(old)
        moment = self.profiles[old].coin.observed_at + _TICK
        # A link that was confirmed just now, because its labels are written differently, would not end.
        confirmed = self._new.pop(old, None)
        if confirmed is not None and confirmed.valid_from < moment:
            self._new[old] = msgspec.structs.replace(confirmed, valid_until=moment)
        elif old in self._current and old not in self._ended:
            self._ended[old] = moment
        self._replaced[old] = group
        self._successors[new] = (old, moment, match)
        group.members[new[0]] = new
        self._group_of[new] = group

    # New assets, links and candidates

    def _found_assets(self) -> bool:
        groups: dict[int, Group] = {}
        for key in self.profiles:
            group = self._group_of.get(key)
            if (group is not None and group.asset) or self._is_retired(key):
                continue
            if key in self._conflicts and key not in self._ended:
                continue
            group = self._group(key)
            groups[id(group)] = group
        found = [(self._ordered(group.members.values()), group) for group in groups.values()]
        found.sort(key=lambda each: self._precedence(each[0][0]))
        founded = False
        for keys, group in found:
            if len(keys) > 1 or self._stands_alone(keys[0]):
                self._found(group, keys)
                founded = True
        return founded

    def _found(self, group: Group, keys: Sequence[Key]) -> None:
        had = (self._asset_before(key) for key in keys)
        # The first of the rows that were in an asset which is free now keeps it, unless a rule parts them.
        kept = next(
            (
                asset
                for asset in had
                if asset
                and not self._is_occupied(asset)
                and not any((key, asset) in self._blocked for key in keys)
            ),
            None,
        )
        if kept:
            # Of two groups, the one with the better rank comes first.
            self._use_figures()
        group.asset = kept or self._new_id(keys)
        self._taken.add(group.asset)
        self._groups[group.asset] = group

    def _asset_before(self, key: Key) -> str | None:
        # The asset that a row had by a rule which is gone, or as the coin that its id means again.
        former = self._former.get(key)
        if key in self._unruled or former is None:
            return self._unruled.get(key)
        is_back = self._has_labels_of(key, former) and (key, former.asset) not in self._blocked
        return former.asset if is_back else None

    def _is_occupied(self, asset: str) -> bool:
        group = self._groups.get(asset)
        return group is not None and bool(group.members)

    def _stands_alone(self, key: Key) -> bool:
        # Whether a row is a coin of its own: no row that has an asset may be the same coin.
        profile = self.profiles[key]
        if self._knowledge.awaited and profile.is_archive and profile.is_bare:
            return False
        return not any(self.asset_of(match.counterpart(key)) is not None for match in self._open_matches(key))

    def _open_matches(self, key: Key) -> list[Match]:
        # The rows that a row may be the same coin as, best first.
        profile = self.profiles[key]
        found = []
        for match in self._matches.get(key, ()):
            other = match.counterpart(key)
            # A row of an archive never keeps a coin of a source from having an asset.
            if self.profiles[other].is_archive and not profile.is_archive:
                continue
            group = self._group(other)
            if (asset := group.asset) is not None and (key, asset) in self._blocked:
                continue
            if (match.one, match.other) in self._parted:
                continue
            occupied = key[0] in group.members
            # Prices or ranks may differ because one source is wrong. If the asset has a row of the same
            # source already, they are two coins.
            likely = match.score >= CANDIDATE_BAR or (self._would_link(match) and not occupied)
            # Of coins that share a contract, those that the labels did not pick are forms of that coin.
            settled = occupied and (match.vetoed or (match.by_contract and match.score < BAR))
            if likely and not settled:
                found.append(match)
        return sorted(found, key=lambda match: (-match.score, match.counterpart(key)))

    def _would_link(self, match: Match) -> bool:
        # Whether the market alone vetoes a match with equal labels.
        kinds = {each["kind"] for each in match.evidence if each["verdict"] == "veto"}
        supports = {each["kind"] for each in match.evidence if each["verdict"] == "for"}
        return match.vetoed and "form" not in kinds and {"symbol", "name"} <= supports

    def _link_successors(self) -> None:
        for new, (old, moment, match) in sorted(self._successors.items()):
            asset = self._replaced[old].asset
            if asset is None or self.asset_of(new) != asset:
                continue
            self._touched.add(asset)
            text = f"{new[0]} no longer lists {old[1]} and gave the coin a new id"
            evidence = [*match.evidence_for(new), _item("id", "for", text)]
            self._write_link(new, asset, CHANGED_ID, match.shown, evidence, begin=moment)
            if old not in self._current:
                reason = self._reasons.get(old, match)
                self._write_link(
                    old, asset, reason.method, reason.shown, reason.evidence_for(old), end=moment
                )

    def _link_members(self) -> None:
        for key in self.profiles:
            group = self._group_of.get(key)
            if (
                group is None
                or group.asset is None
                or key in self._new
                or (key in self._conflicts and key not in self._ended)
            ):
                continue
            link = self._current.get(key)
            stays = link is not None and key not in self._ended
            reason = self._reasons.get(key)
            if stays and not (reason and link is not None and link.method == ALONE):
                continue
            self._touched.add(group.asset)
            if reason is not None:
                self._write_link(key, group.asset, reason.method, reason.shown, reason.evidence_for(key))
            else:
                self._write_link(key, group.asset, ALONE, 1.0, self._alone(key))

    def _alone(self, key: Key) -> list[dict[str, Any]]:
        # Why a row is a coin of its own.
        parts = [rule for rule in self._rules.parts if key in rule.rows]
        if not parts:
            return [_item(ALONE, "for", "no row of another source is the same coin")]
        texts = ("a rule parts it" + (f": {rule.reason}" if rule.reason else "") for rule in parts)
        return [_item(RULE, "for", text) for text in texts]

    def _write_link(
        self,
        key: Key,
        asset: str,
        method: str,
        score: float,
        evidence: list[dict[str, Any]],
        *,
        begin: datetime | None = None,
        end: datetime = FOREVER,
    ) -> None:
        coin = self.profiles[key].coin
        current, former = self._current.get(key), self._former.get(key)
        ended = self._ended.get(key, ALWAYS)
        if begin is None:
            if current is not None and key not in self._ended:
                begin = current.valid_from
            elif ended > ALWAYS:
                begin = ended
            else:
                begin = former.valid_until if former else ALWAYS
        self._new[key] = Link(
            source=key[0],
            source_id=key[1],
            asset=asset,
            method=method,
            score=score,
            evidence=evidence,
            symbol=coin.symbol,
            name=coin.name,
            valid_from=begin,
            valid_until=end,
        )

    def _assets(self) -> list[Asset]:
        found = []
        for asset in sorted(self._touched):
            members = self._groups[asset].members.values()
            keys = sorted(members, key=_naming_order) if len(members) > 1 else members
            coins = [self.profiles[key].coin for key in keys if key in self.profiles]
            symbol = next((coin.symbol for coin in coins if coin.symbol), None)
            name = next((coin.name for coin in coins if coin.name), None)
            new = Asset(asset=asset, symbol=symbol, name=name)
            if self._knowledge.assets.get(asset) != new and coins:
                found.append(new)
        return found

    def _candidates(self) -> Iterator[Candidate]:
        for key, profile in self.profiles.items():
            if self.asset_of(key) is not None or (key in self._conflicts and key not in self._ended):
                continue
            coin = profile.coin
            if self._is_retired(key):
                group = self._replaced.get(key)
                asset = group.asset if group else self._former[key].asset
                yield _candidate(coin, asset, 0.0, "its source gave the coin a new id", [])
                continue
            matches = self._open_matches(key)
            for match in matches[:CANDIDATES_PER_ROW]:
                other = match.counterpart(key)
                reason = self._reason(key, match, matches)
                yield _candidate(coin, self.asset_of(other), match.shown, reason, match.evidence_for(key))
            if not matches:
                awaited = ", ".join(sorted(self._knowledge.awaited))
                yield _candidate(coin, None, 0.0, f"it says too little until {awaited} has been loaded", [])

    def _reason(self, key: Key, match: Match, matches: list[Match]) -> str:
        other = match.counterpart(key)
        name = "/".join(other)
        holder = self._group(other).members.get(key[0])
        rivals = [each for each in matches if each is not match and each.counterpart(key)[0] == other[0]]
        if match.vetoed:
            why = next(each["text"] for each in match.evidence if each["verdict"] == "veto")
            return f"it may be {name}, but {why}"
        if holder is not None:
            return f"it may be {name}, but {'/'.join(holder)} is linked to that coin"
        if match.score >= BAR and rivals:
            return f"it may be {name} or {'/'.join(rivals[0].counterpart(key))}"
        if match.score >= BAR:
            return f"it may be {name}, but another row may be that coin too"
        return f"it may be {name}, but the evidence scores {match.score}, below {BAR}"

    def _place(self, key: Key, asset: str) -> None:
        group = self._groups.setdefault(asset, Group({}, asset))
        group.members[key[0]] = key
        self._group_of[key] = group

    def _leave(self, key: Key) -> None:
        group = self._group_of.pop(key, None)
        if group is not None and group.members.get(key[0]) == key:
            del group.members[key[0]]
        if group is not None and group.asset:
            self._touched.add(group.asset)

    def _release(self, key: Key) -> None:
        # Takes a row out of its asset: its link was wrong from the start.
        self._ended[key] = ALWAYS
        self._new.pop(key, None)
        self._leave(key)

    def _ordered(self, keys: Iterable[Key]) -> list[Key]:
        # Most groups have one row, whose precedence need not be known.
        found = list(keys)
        if len(found) > 1:
            found.sort(key=self._precedence)
        return found

    def _precedence(self, key: Key) -> tuple[Any, ...]:
        # Leading coins come first, archives last.
        profile = self.profiles.get(key)
        if profile is None:
            return (True, True, 0, _naming_order(key))
        rank = profile.coin.rank
        return (profile.is_archive, rank is None, rank or 0, _naming_order(key))

    def _new_id(self, keys: Sequence[Key]) -> str:
        first = (
            min(keys, key=lambda key: (key[0] != NAMING_SOURCES[0], self._precedence(key)))
            if len(keys) > 1
            else keys[0]
        )
        coin = self.profiles[first].coin
        labels = "-".join(filter(None, (slug(coin.symbol or ""), slug(coin.name or ""))))
        if first[0] == NAMING_SOURCES[0] and slug(first[1]) == first[1]:
            base = first[1]
        else:
            base = labels or slug(first[1]) or "coin"
        number, found = 1, base
        while found in self._taken:
            # Of two coins, the one with the better rank gets the id without a number.
            self._use_figures()
            number += 1
            found = f"{base}-{number}"
        return found


def _naming_order(key: Key) -> tuple[Any, ...]:
    position = NAMING_SOURCES.index(key[0]) if key[0] in NAMING_SOURCES else len(NAMING_SOURCES)
    return (key[0] == "csv", position, key)


def _item(kind: str, verdict: str, text: str) -> dict[str, Any]:
    return {"kind": kind, "verdict": verdict, "text": text}


def _candidate(
    coin: Coin, asset: str | None, score: float, reason: str, evidence: list[dict[str, Any]]
) -> Candidate:
    return Candidate(
        source=coin.source,
        source_id=coin.source_id,
        kind="candidate",
        asset=asset,
        score=score,
        reason=reason,
        evidence=evidence,
        symbol=coin.symbol,
        name=coin.name,
    )
