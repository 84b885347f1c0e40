"""CoinGecko: records from sample payloads, settings, and the number of pages."""

from datetime import UTC, datetime

import pytest

from kasparro.errors import SettingsError
from kasparro.model.record import Record
from kasparro.settings import Secret
from kasparro.sources.coingecko import PAGES_LIMIT, SOURCE, CoinGeckoPlan, CoinGeckoSettings, to_record
from tests.support.payload_samples import records

NOW = datetime(2026, 5, 20, 9, 32, tzinfo=UTC)


def test_records_have_the_exact_digits_of_the_payload() -> None:
    first, second, third, unknown = records("coingecko_markets.json", to_record, NOW)

    assert first == Record(
        source_id="amberline",
        symbol="amb",
        name="Amberline",
        observed_at=datetime(2026, 5, 20, 9, 31, 7, 512_000, UTC),
        rank=1,
        price_usd="48213.5371902645",
        market_cap_usd="951204817733",
        volume_24h_usd="31887204419",
        circulating_supply="19729004",
        total_supply="19729004",
        max_supply="21000000",
        percent_change_1h="-0.08120437211094532",
        percent_change_24h="1.7138829104471126",
        percent_change_7d="-4.402918837710263",
    )
    assert (second.name, second.price_usd, second.percent_change_1h) == ('Borealis "Cash"', "1", "0")
    assert (second.max_supply, second.percent_change_7d) == (None, None)
    assert (third.name, third.price_usd, third.max_supply) == (
        "<Cinder> Inu 柴犬",
        "0.0000092641750389",
        "1000000000000000",
    )
    assert third.circulating_supply == "420689899653543.56"
    assert unknown.symbol == ""


def test_cap_of_zero_without_rank_is_unknown() -> None:
    unknown = records("coingecko_markets.json", to_record, NOW)[-1]

    assert (unknown.rank, unknown.market_cap_usd) == (None, None)
    assert (unknown.volume_24h_usd, unknown.circulating_supply) == ("0", "0")


def test_record_without_a_time_has_the_time_of_fetching() -> None:
    unknown = records("coingecko_markets.json", to_record, NOW)[-1]

    assert (unknown.observed_at, unknown.has_source_time) == (NOW, False)


def test_change_without_currency_is_the_fallback() -> None:
    """Without `price_change_percentage` a payload has only the change in the requested currency."""
    (old,) = records("coingecko_markets_2021.json", to_record, NOW)
    third = records("coingecko_markets.json", to_record, NOW)[2]

    assert (old.percent_change_1h, old.percent_change_24h) == (None, "-2.35567")
    assert third.percent_change_24h == "-2.21"


@pytest.mark.parametrize(
    ("key", "plan", "url", "monthly_calls"),
    [
        (None, None, "https://api.coingecko.com/api/v3", None),
        ("k", None, "https://api.coingecko.com/api/v3", 10_000),
        ("k", "demo", "https://api.coingecko.com/api/v3", 10_000),
        ("k", "pro", "https://pro-api.coingecko.com/api/v3", None),
    ],
)
def test_key_and_plan_decide_host_and_budget(
    key: str | None, plan: CoinGeckoPlan | None, url: str, monthly_calls: int | None
) -> None:
    settings = CoinGeckoSettings(key=Secret(key) if key else None, plan=plan)

    assert (settings.url, settings.monthly_calls) == (url, monthly_calls)


def test_settings_override_what_the_plan_decides() -> None:
    settings = CoinGeckoSettings(key=Secret("k"), url="http://here", monthly_calls=5)

    assert (settings.url, settings.monthly_calls) == ("http://here", 5)


@pytest.mark.parametrize(("key", "plan"), [("k", "public"), (None, "demo"), (None, "pro")])
def test_plan_that_contradicts_the_key_is_rejected(key: str | None, plan: CoinGeckoPlan) -> None:
    with pytest.raises(SettingsError, match=r"KASPARRO_COINGECKO_PLAN is .*; allowed"):
        CoinGeckoSettings(key=Secret(key) if key else None, plan=plan)


@pytest.mark.parametrize(
    ("top", "pages"), [(1, 1), (250, 1), (251, 2), (1_000_000, PAGES_LIMIT), (None, PAGES_LIMIT)]
)
def test_max_pages_hold_the_first_coins(top: int | None, pages: int) -> None:
    assert SOURCE.max_pages is not None
    assert SOURCE.max_pages(CoinGeckoSettings(top=top)) == pages
