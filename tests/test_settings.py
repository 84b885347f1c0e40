"""Settings say what is wrong with them in one line, and keep secrets to themselves."""

from datetime import timedelta

import pytest

from kasparro.errors import SettingsError
from kasparro.model.payload import Retention
from kasparro.settings import ApiKey, Rate, Secret, Settings, declared
from kasparro.sources import registry
from kasparro.sources.coingecko import CoinGeckoSettings
from kasparro.sources.coinpaprika import CoinPaprikaSettings
from kasparro.sources.registry import load_settings, unknown_variables


def gecko(environ: dict[str, str]) -> CoinGeckoSettings:
    """The settings of CoinGecko from these environment variables."""
    settings = load_settings(environ).source_settings["coingecko"]
    assert isinstance(settings, CoinGeckoSettings)
    return settings


def test_nothing_set_gives_the_documented_defaults() -> None:
    told = load_settings({})

    assert told.database_url is None
    assert (told.host, told.port) == ("127.0.0.1", 8000)
    assert told.sources == ("coinpaprika", "coingecko", "csv")
    assert told.interval == timedelta(hours=1)
    paprika, gecko = (told.source_settings[name] for name in ("coinpaprika", "coingecko"))
    assert isinstance(gecko, CoinGeckoSettings)
    assert isinstance(paprika, CoinPaprikaSettings)
    assert paprika.url == "https://api.coinpaprika.com/v1"
    assert gecko.url == "https://api.coingecko.com/api/v3"
    assert gecko.plan == "public"
    assert paprika.monthly_calls == 20_000
    assert gecko.monthly_calls is None


def test_an_empty_value_counts_as_unset() -> None:
    assert load_settings({"PORT": "", "DATABASE_URL": " "}) == load_settings({})


def test_a_key_chooses_the_plan_its_host_and_its_budget() -> None:
    demo = gecko({"KASPARRO_COINGECKO_KEY": "CG-1"})
    pro = gecko({"KASPARRO_COINGECKO_KEY": "CG-1", "KASPARRO_COINGECKO_PLAN": "pro"})
    paprika = load_settings({"KASPARRO_COINPAPRIKA_KEY": "k"}).source_settings["coinpaprika"]

    assert (demo.plan, demo.monthly_calls) == ("demo", 10_000)
    assert demo.url == "https://api.coingecko.com/api/v3"
    assert pro.url == "https://pro-api.coingecko.com/api/v3"
    assert (pro.plan, pro.monthly_calls) == ("pro", None)
    assert isinstance(paprika, CoinPaprikaSettings)
    assert paprika.url == "https://api-pro.coinpaprika.com/v1"
    assert paprika.monthly_calls is None


@pytest.mark.parametrize(
    ("told", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("1H", 3600)]
)
def test_intervals(told: str, seconds: int) -> None:
    assert load_settings({"KASPARRO_INTERVAL": told}).interval == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("told", "size"), [("1MB", 10**6), ("512mb", 512_000_000), ("2GB", 2 * 10**9), ("off", 0)]
)
def test_sizes(told: str, size: int) -> None:
    assert load_settings({"KASPARRO_PAYLOAD_MAX_SIZE": told}).retention == Retention(timedelta(days=7), size)


def test_raw_text_is_kept_for_a_week_or_as_told() -> None:
    assert load_settings({}).retention == Retention(timedelta(days=7), 512_000_000)
    assert load_settings({"KASPARRO_PAYLOAD_RETENTION": "12h"}).retention.age == timedelta(hours=12)


@pytest.mark.parametrize(("told", "top"), [("1", 1), ("1000", 1_000), ("all", None), ("ALL", None)])
def test_coins_by_market_cap(told: str, top: int | None) -> None:
    assert gecko({"KASPARRO_COINGECKO_TOP": told}).top == top


def test_the_interval_can_be_off() -> None:
    assert load_settings({"KASPARRO_INTERVAL": "off"}).interval is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "abc"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("KASPARRO_INTERVAL", "1w"),
        ("KASPARRO_INTERVAL", "0s"),
        ("KASPARRO_INTERVAL", "900"),
        ("KASPARRO_PAYLOAD_RETENTION", "off"),
        ("KASPARRO_PAYLOAD_RETENTION", "0d"),
        ("KASPARRO_PAYLOAD_MAX_SIZE", "0MB"),
        ("KASPARRO_PAYLOAD_MAX_SIZE", "512"),
        ("KASPARRO_PAYLOAD_MAX_SIZE", "512KB"),
        ("KASPARRO_COINGECKO_TOP", "0"),
        ("KASPARRO_COINGECKO_TOP", "-5"),
        ("KASPARRO_COINGECKO_TOP", "1.5"),
        ("KASPARRO_COINGECKO_TOP", "1,000"),
        ("KASPARRO_COINGECKO_TOP", "1000001"),
        ("KASPARRO_COINGECKO_TOP", "none"),
        ("KASPARRO_COINGECKO_TOP", "\u0661"),
        ("KASPARRO_SOURCES", "binance"),
        ("KASPARRO_SOURCES", ","),
        ("KASPARRO_COINGECKO_PLAN", "gold"),
        ("KASPARRO_COINGECKO_PLAN", "pro"),
        ("KASPARRO_COINGECKO_MONTHLY_CALLS", "0"),
        ("KASPARRO_COINGECKO_URL", "ftp://x"),
        ("KASPARRO_COINPAPRIKA_URL", "http://["),
        ("KASPARRO_CACHE_MB", "-1"),
        ("KASPARRO_RATE_LIMIT", "10"),
        ("KASPARRO_RATE_LIMIT", "0/s"),
        ("KASPARRO_RATE_LIMIT", "1/w"),
        ("KASPARRO_TRUSTED_PROXIES", "localhost"),
        ("KASPARRO_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("KASPARRO_CORS_ORIGINS", "example.org"),
        ("KASPARRO_CORS_ORIGINS", "https://example.org/"),
        ("KASPARRO_LOG", "xml"),
        ("KASPARRO_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_variable_value_and_what_is_allowed(
    name: str, value: str
) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({name: value})

    text = str(error.value)
    assert name in text
    assert repr(value) in text
    assert "allowed" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://root:hunter2@db/x"),
        ("DATABASE_URL", "postgresql://me:hunter2@db:port/x"),
        ("DATABASE_URL", "postgresql://me:hunter2@db:65536/x"),
        ("DATABASE_READ_URL", "hunter2"),
        ("KASPARRO_ADMIN_TOKEN", "hunter2 with spaces"),
        ("KASPARRO_ADMIN_TOKEN", "hunter2"),
        ("KASPARRO_ADMIN_TOKEN", "hunter2-hunter2"),
        ("KASPARRO_ADMIN_TOKEN", "x"),
        ("KASPARRO_COINGECKO_KEY", "hunter2\n"),
    ],
)
def test_a_wrong_secret_is_never_shown(name: str, value: str) -> None:
    if value.strip() == "hunter2" and name.endswith("KEY"):
        value = "hunter2\u00e9"
    with pytest.raises(SettingsError, match=name) as error:
        load_settings({name: value})
    assert value not in str(error.value).split()
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://a:b@one:1,two:2/x?sslmode=require",
        "postgres:///x?host=/tmp&user=me",
        "postgresql://[::1]:5432/x",
        "postgresql://u:p%40:w@h/x",
    ],
)
def test_urls_of_databases(url: str) -> None:
    told = load_settings({"DATABASE_URL": url}).database_url
    assert told is not None
    assert told.reveal() == url


def test_secrets_do_not_show_when_settings_are_printed() -> None:
    told = load_settings(
        {
            "DATABASE_URL": "postgresql://me:hunter2@db/x",
            "KASPARRO_COINGECKO_KEY": "hunter2",
            "KASPARRO_ADMIN_TOKEN": "hunter2-hunter22",
        }
    )
    assert "hunter2" not in repr(told)
    assert told.admin_token == Secret("hunter2-hunter22")


def test_a_misspelt_setting_is_found_with_the_one_meant() -> None:
    assert unknown_variables({"KASPARRO_INTERVALL": "1h", "PATH": "", "KASPARRO_LOG": "json"}) == {
        "KASPARRO_INTERVALL": "KASPARRO_INTERVAL"
    }


def test_every_setting_has_a_variable_with_a_meaning_and_a_default() -> None:
    assert set(declared(Settings)) == set(Settings.__struct_fields__) - {"source_settings"}
    assert all(variable.meaning and variable.default for variable in registry.variables())


LONG = "hunter2-hunter22"


def test_api_keys_by_name() -> None:
    told = load_settings({"KASPARRO_API_KEYS": "alice:s3cret-0123456789, bob:a:b:0123456789ab"}).api_keys
    assert told == (
        ApiKey("alice", Secret("s3cret-0123456789")),
        ApiKey("bob", Secret("a:b:0123456789ab")),
    )
    assert "s3cret" not in repr(told)


@pytest.mark.parametrize(
    "value",
    [
        LONG,
        f":{LONG}",
        "a:",
        f"a b:{LONG}",
        f"a:{LONG} 2",
        f"a:{LONG},",
        f"a:{LONG},a:{LONG}2",
        f"a:{LONG},b:{LONG}",
        f"a:{LONG[:15]}",
        f"admin:{LONG}",
    ],
)
def test_a_wrong_api_key_is_never_shown(value: str) -> None:
    with pytest.raises(SettingsError, match="KASPARRO_API_KEYS") as error:
        load_settings({"KASPARRO_API_KEYS": value})
    assert "hunter2" not in str(error.value)


def test_a_secret_that_could_be_guessed_is_no_api_key() -> None:
    assert load_settings({"KASPARRO_API_KEYS": "a:0123456789abcdef"}).api_keys
    with pytest.raises(SettingsError, match="16 or more"):
        load_settings({"KASPARRO_API_KEYS": "a:0123456789abcde"})


@pytest.mark.parametrize(
    ("told", "rate"),
    [
        ("600/m", Rate(600, 60)),
        ("10/s", Rate(10, 1)),
        ("5/H", Rate(5, 3600)),
        ("1/d", Rate(1, 86_400)),
        ("off", None),
    ],
)
def test_rate_limits(told: str, rate: Rate | None) -> None:
    assert load_settings({"KASPARRO_RATE_LIMIT": told}).rate_limit == rate


def test_lists_of_proxies_and_origins() -> None:
    told = load_settings(
        {
            "KASPARRO_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "KASPARRO_CORS_ORIGINS": "https://a.example, http://localhost:3000",
        }
    )
    assert told.trusted_proxies == ("10.0.0.0/8", "::1")
    assert told.cors_origins == ("https://a.example", "http://localhost:3000")
    assert load_settings({"KASPARRO_CORS_ORIGINS": "*"}).cors_origins == ("*",)
