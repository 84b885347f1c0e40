"""The user's rules: what a file may say, what a wrong one is answered with, and that rules always win."""

from pathlib import Path

import pytest

from kasparro.assets.explain import explain
from kasparro.assets.rules import NO_RULES, Rule, Rules, read_rules
from kasparro.errors import SettingsError
from kasparro.model.asset import ALWAYS
from tests.assets.support import World, coin, key, texts

SOURCES = ("coinpaprika", "coingecko", "csv")
BITCOIN = coin("coinpaprika/btc-bitcoin", "BTC", "Bitcoin", rank=1)
BITCOIN_CG = coin("coingecko/bitcoin", "btc", "Bitcoin", rank=1)


def rules_of(tmp_path: Path, text: str) -> Rules:
    path = tmp_path / "rules.toml"
    path.write_text(text, "utf-8")
    return read_rules(path, SOURCES)


def test_a_file_links_and_parts(tmp_path: Path) -> None:
    rules = rules_of(
        tmp_path,
        """
        [[link]]
        asset = "btc-bitcoin"
        rows = ["coinpaprika/btc-bitcoin", "csv/xbt"]
        reason = "our own archive"

        [[part]]
        rows = ["coinpaprika/mc-merit-circle", "coingecko/merit-circle"]
        """,
    )
    assert rules == Rules(
        links=(
            Rule(
                rows=(("coinpaprika", "btc-bitcoin"), ("csv", "xbt")),
                asset="btc-bitcoin",
                reason="our own archive",
            ),
        ),
        parts=(Rule(rows=(("coinpaprika", "mc-merit-circle"), ("coingecko", "merit-circle"))),),
    )
    assert rules.digest != NO_RULES.digest


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    rules = rules_of(tmp_path, '\ufeff[[part]]\nrows = ["csv/a", "coingecko/b"]')
    assert len(rules.parts) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[link]", "is not valid TOML"),
        ("[[join]]\nrows = []", "unknown table 'join'; allowed: [[link]] and [[part]]"),
        ("[link]\nrows = []", "link is written as [[link]]"),
        (
            '[[link]]\nrows = ["coingecko/bitcoin"]\nasset = "candidates"',
            "[[link]] 1: asset cannot be 'candidates', which is a path of the API",
        ),
        ('[[link]]\nrow = "a/b"', "[[link]] 1: unknown key 'row'; allowed: rows, asset, reason"),
        ("[[link]]\nrows = []", "[[link]] 1: rows must be a list of texts"),
        (
            '[[part]]\nrows = ["csv/btc"]',
            "[[part]] 1: rows must have at least two rows, or asset must be given",
        ),
        ('[[link]]\nrows = ["btc", "csv/btc"]', "[[link]] 1: rows has 'btc', which is not SOURCE/SOURCE_ID"),
        (
            '[[link]]\nrows = ["cmc/btc", "csv/btc"]',
            "rows has 'cmc/btc', whose source is unknown; allowed: coingecko, coinpaprika, csv",
        ),
        ('[[link]]\nrows = ["csv/btc", "csv/btc"]', "[[link]] 1: rows has a row twice"),
        (
            f'[[link]]\nasset = "{"a" * 201}"\nrows = ["csv/btc"]',
            "[[link]] 1: asset is longer than 200 characters",
        ),
        (
            '[[link]]\nrows = ["csv/btc", "csv/xbt"]',
            "[[link]] 1: csv/btc and csv/xbt are two ids of one source, which never share an asset",
        ),
        (
            '[[link]]\nasset = "a"\nrows = ["csv/btc"]\n[[link]]\nasset = "b"\nrows = ["csv/btc"]',
            "[[link]] 2: csv/btc is in [[link]] 1 too",
        ),
        (
            '[[link]]\nasset = "a"\nrows = ["csv/a"]\n[[link]]\nasset = "a"\nrows = ["csv/b"]',
            "[[link]] 2: asset a is in [[link]] 1 too; use one rule",
        ),
        ('[[link]]\nasset = "BTC!"\nrows = ["csv/a"]', "[[link]] 1: asset must be an id in lower case"),
        ('[[link]]\nasset = "a"\nrows = ["csv/a"]\nreason = 1', "[[link]] 1: reason must be a text"),
        (
            '[[link]]\nrows = ["csv/a", "coingecko/a"]\n[[part]]\nrows = ["csv/a", "coingecko/a"]',
            "[[part]] 1: csv/a and coingecko/a are linked by [[link]] 1",
        ),
        (
            '[[link]]\nasset = "x"\nrows = ["csv/a"]\n[[part]]\nasset = "x"\nrows = ["csv/a"]',
            "[[part]] 1: csv/a is linked to x by [[link]] 1",
        ),
    ],
)
def test_a_wrong_file_is_answered_with_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as raised:
        rules_of(tmp_path, text)
    assert reason in str(raised.value)
    assert str(raised.value).startswith("KASPARRO_ASSET_RULES: ")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_answered_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
        read_rules(tmp_path / "none.toml", SOURCES)


def test_a_rule_parts_two_coins_that_are_linked() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    world.rules = Rules(parts=(Rule(rows=(key("coinpaprika/btc-bitcoin"), key("coingecko/bitcoin"))),))
    resolution = world.load()
    # The link was wrong from the start.
    assert resolution.ended == {key("coingecko/bitcoin"): ALWAYS}
    assert world.asset("coinpaprika/btc-bitcoin") == "btc-bitcoin"
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin-2"
    assert not world.load().links


def test_a_rule_parts_a_row_from_an_asset() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    world.rules = Rules(parts=(Rule(rows=(key("coingecko/bitcoin"),), asset="btc-bitcoin"),))
    world.load()
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin-2"


def test_a_rule_links_rows_that_nothing_else_links() -> None:
    world = World(BITCOIN, BITCOIN_CG, coin("csv/xbt", price_usd="1"))
    assert world.asset("csv/xbt") == "xbt"
    world.rules = Rules(links=(Rule(rows=(key("csv/xbt"), key("coinpaprika/btc-bitcoin")), reason="ours"),))
    # Rows are named in the order of their weight: the first one that has an asset gives it.
    world.rules = Rules(links=(Rule(rows=(key("coinpaprika/btc-bitcoin"), key("csv/xbt")), reason="ours"),))
    world.load()
    link = world.link("csv/xbt")
    assert link is not None
    assert (link.asset, link.method, link.score) == ("btc-bitcoin", "rule", 1.0)
    assert texts(link.evidence) == "a rule links it: ours"


def test_a_rule_takes_the_place_of_another_row_of_the_source() -> None:
    other = coin("coingecko/bitcoin-real", "btcr", "The Real One")
    world = World(BITCOIN, BITCOIN_CG, other)
    world.rules = Rules(links=(Rule(rows=(key("coinpaprika/btc-bitcoin"), other.key)),))
    world.load()
    assert world.asset("coingecko/bitcoin-real") == "btc-bitcoin"
    assert world.asset("coingecko/bitcoin") != "btc-bitcoin"
    assert not world.load().links


def test_without_its_rule_a_row_is_decided_anew() -> None:
    world = World(BITCOIN, coin("csv/thing", "THG", "Thing"))
    world.rules = Rules(links=(Rule(rows=(key("coinpaprika/btc-bitcoin"), key("csv/thing"))),))
    world.load()
    assert world.asset("csv/thing") == "btc-bitcoin"
    world.rules = NO_RULES
    world.load()
    assert world.asset("csv/thing") not in {None, "btc-bitcoin"}
    assert world.asset("coinpaprika/btc-bitcoin") == "btc-bitcoin"


def test_a_rule_may_name_rows_that_have_not_arrived_and_an_asset_that_is_new() -> None:
    rules = Rules(links=(Rule(rows=(key("coingecko/bitcoin"), key("csv/none")), asset="my-bitcoin"),))
    world = World(BITCOIN, BITCOIN_CG, rules=rules)
    assert world.asset("coingecko/bitcoin") == "my-bitcoin"
    assert world.asset("coinpaprika/btc-bitcoin") in {"my-bitcoin", "btc-bitcoin"}


def test_rows_that_a_rule_linked_do_not_keep_an_asset_that_a_new_rule_parts_them_from() -> None:
    rows = (key("coinpaprika/btc-bitcoin"), key("coingecko/bitcoin"))
    world = World(BITCOIN, BITCOIN_CG, rules=Rules(links=(Rule(rows=rows, asset="btc-bitcoin"),)))
    world.rules = Rules(parts=(Rule(rows=rows, asset="btc-bitcoin"),))
    world.load()
    assert world.asset("coingecko/bitcoin") == world.asset("coinpaprika/btc-bitcoin") == "btc-bitcoin-2"


def test_a_row_that_a_rule_parted_says_so_and_why() -> None:
    rows = (key("coinpaprika/btc-bitcoin"), key("coingecko/bitcoin"))
    world = World(BITCOIN, BITCOIN_CG)
    world.rules = Rules(parts=(Rule(rows=rows, reason="checked on both web sites"),))
    world.load()
    link = world.link("coingecko/bitcoin")
    assert link is not None
    assert texts(link.evidence) == "a rule parts it: checked on both web sites"


# Explanations, which are dry runs as well


def test_an_explanation_shows_the_evidence_for_each_counterpart() -> None:
    fake = coin("coingecko/bitcoin-4", "btc", "Bitcoin", rank=900)
    world = World(BITCOIN, BITCOIN_CG, fake)
    explanation = explain(world.knowledge, key("coinpaprika/btc-bitcoin"))
    assert explanation.bar == 0.9
    assert [each.source_id for each in explanation.counterparts] == ["bitcoin", "bitcoin-4"]
    best, stranger = explanation.counterparts
    assert best.score >= explanation.bar > stranger.score
    assert "ranks are far apart" in texts(stranger.evidence)
    assert explanation.changes == []
    assert explanation.link is not None
    with pytest.raises(KeyError):
        explain(world.knowledge, key("coingecko/none"))


def test_an_explanation_is_a_dry_run_of_rules() -> None:
    world = World(BITCOIN, BITCOIN_CG)
    rules = Rules(parts=(Rule(rows=(key("coinpaprika/btc-bitcoin"), key("coingecko/bitcoin"))),))
    explanation = explain(world.knowledge, key("coingecko/bitcoin"), rules)
    assert explanation.changes == ["it would be linked to btc-bitcoin-2 instead of btc-bitcoin"]
    assert world.asset("coingecko/bitcoin") == "btc-bitcoin"
