"""Settings are parsed from the environment. Errors are one line and never show secrets."""

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


def test_defaults() -> None:
    settings = load_settings({})

    assert settings.database_url is None
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.sources == ("coinpaprika", "coingecko", "csv")
    assert settings.interval == timedelta(hours=1)
    paprika, gecko = (settings.source_settings[name] for name in ("coinpaprika", "coingecko"))
    assert isinstance(gecko, CoinGeckoSettings)
    assert isinstance(paprika, CoinPaprikaSettings)
    assert paprika.url == "https://api.coinpaprika.com/v1"
    assert gecko.url == "https://api.coingecko.com/api/v3"
    assert gecko.plan == "public"
    assert paprika.monthly_calls == 20_000
    assert gecko.monthly_calls is None


def test_empty_value_counts_as_unset() -> None:
    assert load_settings({"PORT": "", "DATABASE_URL": " "}) == load_settings({})


def test_key_and_plan_decide_host_and_budget() -> None:
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
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800), ("1H", 3600)]
)
def test_intervals(text: str, seconds: int) -> None:
    assert load_settings({"KASPARRO_INTERVAL": text}).interval == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "size"), [("1MB", 10**6), ("512mb", 512_000_000), ("2GB", 2 * 10**9), ("off", 0)]
)
def test_sizes(text: str, size: int) -> None:
    assert load_settings({"KASPARRO_PAYLOAD_MAX_SIZE": text}).retention == Retention(timedelta(days=7), size)


def test_payload_retention() -> None:
    assert load_settings({}).retention == Retention(timedelta(days=7), 512_000_000)
    assert load_settings({"KASPARRO_PAYLOAD_RETENTION": "12h"}).retention.age == timedelta(hours=12)


@pytest.mark.parametrize(("text", "top"), [("1", 1), ("1000", 1_000), ("all", None), ("ALL", None)])
def test_coingecko_top(text: str, top: int | None) -> None:
    assert gecko({"KASPARRO_COINGECKO_TOP": text}).top == top


def test_interval_off() -> None:
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
def test_error_names_variable_value_and_allowed_values(name: str, value: str) -> None:
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
def test_error_does_not_show_a_secret(name: str, value: str) -> None:
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
def test_database_urls(url: str) -> None:
    secret = load_settings({"DATABASE_URL": url}).database_url
    assert secret is not None
    assert secret.reveal() == url


# As dashboards show them.
@pytest.mark.parametrize(
    ("url", "used"),
    [
        (
            "postgresql://o:s@ep-a-b-1.eu-central-1.aws.neon.tech/d?sslmode=require&channel_binding=require",
            "postgresql://o:s@ep-a-b-1.eu-central-1.aws.neon.tech/d?sslmode=require",
        ),
        (
            "postgresql://postgres.abc:s@aws-0-eu-west-1.pooler.supabase.com:6543/postgres?pgbouncer=true",
            "postgresql://postgres.abc:s@aws-0-eu-west-1.pooler.supabase.com:6543/postgres",
        ),
        (
            "postgres://u:s@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?ssl=true",
            "postgres://u:s@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d1?sslmode=require",
        ),
        ("postgresql://u:s@dpg-abc-a.frankfurt-postgres.render.com/d", None),
        ("postgresql://u:s@h/d?options=endpoint%3Dep-a-b-1&sslmode=verify-full", None),
        (
            "postgresql://u:s@h/d?connect_timeout=10&keepalives=1&gssencmode=disable&application_name=x"
            "&target_session_attrs=read-write&options=-csearch_path%3Da&passfile=/p",
            "postgresql://u:s@h/d?options=-csearch_path%3Da&passfile=%2Fp",
        ),
    ],
)
@pytest.mark.parametrize("name", ["DATABASE_URL", "DATABASE_READ_URL"])
def test_parameters_of_database_urls_are_used_or_ignored(name: str, url: str, used: str | None) -> None:
    settings = load_settings({name: url})
    secret = settings.database_url or settings.database_read_url
    assert secret is not None
    assert secret.reveal() == (used or url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://me:hunter2@db/x?schema=public", "a URL without the parameter schema;"),
        ("postgresql://me:hunter2@db/x?b=1&a=2", "a URL without the parameter a, b;"),
        (
            "postgresql://me:hunter2@db/x?require_auth=scram-sha-256",
            "a URL without the parameter require_auth;",
        ),
        ("postgresql://me:hunter2@db/x?ssl=no-verify", "a URL without the parameter ssl;"),
        ("postgresql://me:hunter2@db/x?gssencmode=require", "a URL without gssencmode=require"),
        ("postgresql://me:hunter2@db/x?sslmode=no-verify", "a URL whose sslmode is disable, allow, prefer,"),
        (
            "postgresql://me:hunter2@db/x?sslmode=verify-full&sslrootcert=system",
            "a URL whose sslrootcert is a file",
        ),
        ("postgresql://me:hunter2@db/x?port=any", "a URL whose port is a number"),
        (
            "postgresql://me:hunter2@db/x?sslmode",
            "a URL whose parameters, after the ?, have the form name=value",
        ),
        ("postgresql://me:hunter2@2@db/x", "postgresql://user:password@host:port/name, .* (@ is %40)"),
        ("postgresql://me:2?hunter2=@db/x", "postgresql://user:password@host:port/name, "),
        ("postgresql://me:2#hunter2@db/x", "postgresql://user:password@host:port/name, "),
        (
            "postgresql://postgres:[YOUR-PASSWORD]@db.abc.supabase.co:5432/postgres",
            "postgresql://user:password@",
        ),
    ],
)
def test_error_names_the_parameter_of_a_database_url(url: str, reason: str) -> None:
    with pytest.raises(SettingsError) as error:
        load_settings({"DATABASE_URL": url})
    text = str(error.value)
    begins, _, ends = f"DATABASE_URL has a value that is not allowed; allowed: {reason}".partition(" .* ")
    assert text.startswith(begins)
    assert text.endswith(ends) or not ends
    assert "hunter2" not in text
    assert "\n" not in text


def test_repr_does_not_show_secrets() -> None:
    settings = load_settings(
        {
            "DATABASE_URL": "postgresql://me:hunter2@db/x",
            "KASPARRO_COINGECKO_KEY": "hunter2",
            "KASPARRO_ADMIN_TOKEN": "hunter2-hunter22",
        }
    )
    assert "hunter2" not in repr(settings)
    assert settings.admin_token == Secret("hunter2-hunter22")


def test_unknown_variable_with_a_similar_name() -> None:
    assert unknown_variables({"KASPARRO_INTERVALL": "1h", "PATH": "", "KASPARRO_LOG": "json"}) == {
        "KASPARRO_INTERVALL": "KASPARRO_INTERVAL"
    }


def test_every_setting_is_documented() -> None:
    assert set(declared(Settings)) == set(Settings.__struct_fields__) - {"source_settings"}
    assert all(variable.meaning and variable.default for variable in registry.variables())


LONG = "hunter2-hunter22"


def test_api_keys() -> None:
    keys = load_settings({"KASPARRO_API_KEYS": "alice:s3cret-0123456789, bob:a:b:0123456789ab"}).api_keys
    assert keys == (
        ApiKey("alice", Secret("s3cret-0123456789")),
        ApiKey("bob", Secret("a:b:0123456789ab")),
    )
    assert "s3cret" not in repr(keys)


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
def test_error_does_not_show_an_api_key(value: str) -> None:
    with pytest.raises(SettingsError, match="KASPARRO_API_KEYS") as error:
        load_settings({"KASPARRO_API_KEYS": value})
    assert "hunter2" not in str(error.value)


def test_short_secret_is_no_api_key() -> None:
    assert load_settings({"KASPARRO_API_KEYS": "a:0123456789abcdef"}).api_keys
    with pytest.raises(SettingsError, match="16 or more"):
        load_settings({"KASPARRO_API_KEYS": "a:0123456789abcde"})


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("600/m", Rate(600, 60)),
        ("10/s", Rate(10, 1)),
        ("5/H", Rate(5, 3600)),
        ("1/d", Rate(1, 86_400)),
        ("off", None),
    ],
)
def test_rate_limits(text: str, rate: Rate | None) -> None:
    assert load_settings({"KASPARRO_RATE_LIMIT": text}).rate_limit == rate


def test_proxies_and_origins() -> None:
    settings = load_settings(
        {
            "KASPARRO_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "KASPARRO_CORS_ORIGINS": "https://a.example, http://localhost:3000",
        }
    )
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
    assert load_settings({"KASPARRO_CORS_ORIGINS": "*"}).cors_origins == ("*",)
