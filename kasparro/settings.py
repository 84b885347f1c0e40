"""Reads the settings from environment variables into a frozen struct."""

import difflib
import ipaddress
import itertools
import re
import typing
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
import platformdirs

from kasparro.errors import SettingsError, one_line
from kasparro.model.consensus import ConsensusLimits
from kasparro.model.history_retention import HistoryRetention, Thinning
from kasparro.model.payload import Retention

# A random secret of this many characters cannot be guessed.
API_KEY_LENGTH = 16


class Secret:
    """A value that logs, responses and tracebacks do not show. `reveal()` returns it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


class ApiKey(msgspec.Struct, frozen=True):
    """An API key of a client, and the name that metrics and logs show for it."""

    name: str
    secret: Secret


class Rate(msgspec.Struct, frozen=True):
    """A number of requests in a number of seconds."""

    requests: int
    seconds: int


class NotAllowed(Exception):
    """A value is not allowed. The text completes "…; allowed: "."""


class Variable(msgspec.Struct, frozen=True):
    """An environment variable: how it is parsed, and how `--help` and docs/configuration.md describe it."""

    name: str
    meaning: str
    default: str
    parse: Callable[[str], Any]
    secret: bool = False


_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)", re.ASCII)
# A host name, an address in brackets or nothing, and optionally a port up to 65535.
_HOST = re.compile(
    r"(\[[^\]]*\]|[^:\[]*)(:([0-9]{1,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
)
# The parameters of database URLs that asyncpg knows. `options` goes to the server.
URL_PARAMETERS = {
    *("host", "port", "user", "password", "dbname", "passfile", "service", "options"),
    *("sslmode", "sslnegotiation", "sslpassword", "ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("krbsrvname", "gsslib"),
}
URL_FILES = {"sslrootcert", "sslcert", "sslkey", "sslcrl"}
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Those that we ignore; asyncpg would send them to the server, which rejects them. For most we have values of
# our own. asyncpg lacks those about channels and GSS. The last line is for other clients; dashboards add it.
URL_IGNORED = {
    *("application_name", "fallback_application_name", "client_encoding", "connect_timeout"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("target_session_attrs", "load_balance_hosts"),
    *("channel_binding", "gssencmode", "gssdelegation", "sslcompression", "sslsni"),
    *("pgbouncer", "connection_limit", "pool_timeout", "prepared_statements", "supa"),
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SIZE = re.compile(r"(\d{1,6})(mb|gb)", re.ASCII)
_BYTES = {"mb": 10**6, "gb": 10**9}


def parse_text(value: str) -> str:
    return value


def _path(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise NotAllowed("a path in which ~NAME, if present, is a user of this machine") from None


def parse_integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"\d{1,12}", value, re.ASCII) or not low <= int(value) <= high:
            raise NotAllowed(f"a whole number from {low} to {high}")
        return int(value)

    return parse


def parse_choice(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in allowed:
            raise NotAllowed(", ".join(allowed))
        return value.lower()

    return parse


def _switch(value: str) -> bool:
    return parse_choice("on", "off")(value) == "on"


def _sources(allowed: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(value: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip().lower() for name in value.split(",") if name.strip()))
        if not names or not set(names) <= set(allowed):
            raise NotAllowed(f"a comma list of {', '.join(allowed)}")
        return names

    return parse


def _interval(value: str) -> timedelta | None:
    if value.lower() == "off":
        return None
    if (found := _duration(value)) is None:
        raise NotAllowed("a time from 1s to 366d such as 90s, 15m or 1h, or off")
    return found


def _age(value: str) -> timedelta:
    if (found := _duration(value)) is None:
        raise NotAllowed("a time from 1s to 366d such as 12h or 7d")
    return found


def _duration(value: str) -> timedelta | None:
    match = _DURATION.fullmatch(value.lower())
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    return timedelta(seconds=seconds) if 1 <= seconds <= 366 * 86_400 else None


_AGE = re.compile(r"([1-9]\d{0,4})([dwy])", re.ASCII)
_DAYS = {"d": 1, "w": 7, "y": 365}


def _history_retention(value: str) -> HistoryRetention:
    # Each step says how long its interval is kept, so the next begins at that age.
    allowed = NotAllowed(
        "steps from raw over 1h to 1d, each with the age until which it is kept, such as 90d, 12w or 2y, and "
        "the last with forever, because history is thinned and never deleted: raw:90d,1h:2y,1d:forever"
    )
    intervals, ages = [], []
    for step in value.lower().split(","):
        interval, _, age = step.strip().partition(":")
        match = _AGE.fullmatch(age)
        if match is None and age != "forever":
            raise allowed
        intervals.append(interval)
        ages.append(timedelta(days=int(match[1]) * _DAYS[match[2]]) if match else timedelta.max)
    if (
        tuple(intervals) not in {("raw",), ("raw", "1h"), ("raw", "1d"), ("raw", "1h", "1d")}
        or ages[-1] != timedelta.max
        or not all(earlier < later for earlier, later in itertools.pairwise(ages))
    ):
        raise allowed
    thinned: Any = intervals[1:]
    return HistoryRetention(tuple(map(Thinning, ages, thinned)))


def _size(value: str) -> int:
    if value.lower() == "off":
        return 0
    match = _SIZE.fullmatch(value.lower())
    if match is None or not int(match[1]):
        raise NotAllowed("a size from 1MB such as 512MB or 2GB, or off")
    return int(match[1]) * _BYTES[match[2]]


def _percent(value: str) -> Decimal:
    if not re.fullmatch(r"\d{1,4}(\.\d{1,4})?", value, re.ASCII) or not Decimal(value):
        raise NotAllowed("a number above 0 and below 10000 such as 5 or 2.5")
    return Decimal(value)


def _api_keys(value: str) -> tuple[ApiKey, ...]:
    keys = []
    for part in value.split(","):
        name, _, secret = part.strip().partition(":")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,40}", name) or not re.fullmatch(
            rf"[!-~]{{{API_KEY_LENGTH},}}", secret
        ):
            raise NotAllowed(
                "name:secret, …; a name has up to 40 letters, digits, dots, - and _, a secret has "
                f"{API_KEY_LENGTH} or more printable ASCII characters without spaces and commas"
            )
        if name == "admin":
            raise NotAllowed("any name except admin, which means KASPARRO_ADMIN_TOKEN")
        keys.append(ApiKey(name, Secret(secret)))
    if len({key.name for key in keys}) < len(keys) or len({key.secret for key in keys}) < len(keys):
        raise NotAllowed("each name and each secret once")
    return tuple(keys)


def _rate(value: str) -> Rate | None:
    if value.lower() == "off":
        return None
    match = re.fullmatch(r"([1-9][0-9]{0,8})/([smhd])", value.lower(), re.ASCII)
    if not match:
        raise NotAllowed("requests per second, minute, hour or day such as 10/s, 600/m or 5000/h, or off")
    return Rate(int(match[1]), _SECONDS[match[2]])


def _origins(value: str) -> tuple[str, ...]:
    origins = tuple(dict.fromkeys(origin.strip() for origin in value.split(",") if origin.strip()))
    if not all(
        origin == "*" or re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", origin) for origin in origins
    ):
        raise NotAllowed("* or a comma list of origins such as https://example.org")
    return origins


def _proxies(value: str) -> tuple[str, ...]:
    proxies = tuple(proxy.strip() for proxy in value.split(",") if proxy.strip())
    try:
        for proxy in proxies:
            if proxy != "*":
                ipaddress.ip_network(proxy)
    except ValueError:
        raise NotAllowed("* or a comma list of addresses and networks such as 10.0.0.0/8") from None
    return proxies


def parse_http_url(value: str) -> str:
    url = _split(value)
    if url is None or url.scheme not in {"http", "https"} or not url.hostname or url.query or url.fragment:
        raise NotAllowed("an http or https URL with a host, without a query")
    return value.rstrip("/")


def parse_secret(value: str) -> Secret:
    # Keys and tokens are sent in HTTP headers, where other characters are not safe.
    if not re.fullmatch(r"[!-~]+", value):
        raise NotAllowed("printable ASCII characters without spaces")
    return Secret(value)


def _admin_token(value: str) -> Secret:
    if not re.fullmatch(rf"[!-~]{{{API_KEY_LENGTH},}}", value):
        raise NotAllowed(f"{API_KEY_LENGTH} or more printable ASCII characters without spaces")
    return Secret(value)


def _database_url(value: str) -> Secret:
    url = _split(value)
    account, _, hosts = url.netloc.rpartition("@") if url else ("", "", "")
    if (
        url is None
        or url.scheme not in {"postgres", "postgresql"}
        or not all(_HOST.fullmatch(host) for host in hosts.split(","))
        # Only an unescaped password has these.
        or "@" in account + url.query
        or url.fragment
    ):
        raise NotAllowed(
            "postgresql://user:password@host:port/name, with commas between several hosts, and with special "
            "characters of user and password as %-escapes (@ is %40)"
        )
    try:
        # asyncpg, too, takes the last of several values.
        given = dict(parse_qsl(url.query, strict_parsing=True)) if url.query else {}
    except ValueError:
        raise NotAllowed("a URL whose parameters, after the ?, have the form name=value&name=value") from None
    kept = _database_parameters(given)
    return Secret(value if kept == given else url._replace(query=urlencode(kept)).geturl())


def _database_parameters(given: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a database URL that asyncpg shall see."""
    kept = {name: value for name, value in given.items() if name not in URL_IGNORED}
    # libpq takes this form of JDBC, too.
    if kept.get("ssl") == "true":
        del kept["ssl"]
        kept["sslmode"] = "require"
    if unknown := sorted(kept.keys() - URL_PARAMETERS - URL_FILES):
        raise NotAllowed(
            f"a URL without the parameter {', '.join(unknown)}; known are the parameters of libpq that "
            "docs/configuration.md lists, and settings of the server in options, as in "
            "options=-csearch_path%3Dname"
        )
    if given.get("gssencmode") == "require":
        raise NotAllowed("a URL without gssencmode=require, because this encryption is not supported")
    if kept.get("sslmode", "prefer") not in _SSL_MODES:
        raise NotAllowed(f"a URL whose sslmode is {', '.join(_SSL_MODES)}")
    if not re.fullmatch(r"\d{1,5}(,\d{1,5})*", kept.get("port", "5432"), re.ASCII):
        raise NotAllowed("a URL whose port is a number")
    for name in sorted(kept.keys() & URL_FILES):
        if not Path(kept[name]).is_file():
            raise NotAllowed(
                f"a URL whose {name} is a file that exists, such as /etc/ssl/certs/ca-certificates.crt"
                if name == "sslrootcert"
                else f"a URL whose {name} is a file that exists"
            )
    return kept


def _split(value: str) -> Any:
    try:
        return urlsplit(value)
    except ValueError:
        return None


# The longest time between the demo's runs.
DEMO_INTERVAL = timedelta(seconds=20)


class SourceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one source. A subclass adds fields, each annotated with its `Variable`."""

    monthly_calls: int | None = None
    """How many upstream calls the source may make in a calendar month (UTC); None: no limit."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings from the environment. The documentation lists them in the order of the fields."""

    database_url: Annotated[
        Secret | None,
        Variable(
            "DATABASE_URL",
            "URL of PostgreSQL 15 or newer; several hosts are allowed",
            "an embedded PostgreSQL under KASPARRO_HOME",
            _database_url,
            secret=True,
        ),
    ] = None
    database_read_url: Annotated[
        Secret | None,
        Variable(
            "DATABASE_READ_URL", "URL of replicas for reads", "DATABASE_URL", _database_url, secret=True
        ),
    ] = None
    database_connections: Annotated[
        int | None,
        Variable(
            "KASPARRO_DATABASE_CONNECTIONS",
            "database connections per process, at least 8",
            "a share of what the database server allows",
            parse_integer(8, 1_000),
        ),
    ] = None
    home: Annotated[
        Path,
        Variable(
            "KASPARRO_HOME", "data directory of the embedded database", "the user data directory", _path
        ),
    ] = msgspec.field(default_factory=lambda: platformdirs.user_data_path("kasparro", appauthor=False))
    host: Annotated[str, Variable("KASPARRO_HOST", "listen address", "127.0.0.1", parse_text)] = "127.0.0.1"
    port: Annotated[
        int, Variable("PORT", "listen port; 0 chooses a free port", "8000", parse_integer(0, 65_535))
    ] = 8000
    sources: Annotated[
        tuple[str, ...],
        # The installed sources decide the default and the allowed values: see `variables`.
        Variable("KASPARRO_SOURCES", "the sources that run", "", _sources(())),
    ] = ()
    interval: Annotated[
        timedelta | None,
        Variable(
            "KASPARRO_INTERVAL", "time between runs: 90s, 15m, 1h; off", "1h, and one run at start", _interval
        ),
    ] = timedelta(hours=1)
    source_settings: dict[str, SourceSettings] = {}
    """The settings of each installed source, by the source's name."""
    payload_retention: Annotated[
        timedelta,
        Variable(
            "KASPARRO_PAYLOAD_RETENTION",
            "how long payloads and rejects are stored: 12h, 7d",
            "7d",
            _age,
        ),
    ] = Retention().age
    payload_max_size: Annotated[
        int,
        Variable(
            "KASPARRO_PAYLOAD_MAX_SIZE",
            "total size of stored payloads, compressed: 512MB, 2GB; off stores none",
            "512MB",
            _size,
        ),
    ] = Retention().payload_bytes
    asset_rules: Annotated[
        Path | None,
        Variable("KASPARRO_ASSET_RULES", "a TOML file that links and parts coins for good", "none", _path),
    ] = None
    quote_max_lag: Annotated[
        timedelta,
        Variable(
            "KASPARRO_QUOTE_MAX_LAG",
            "how much older than an asset's newest price another source's price may be to count: 30m, 6h",
            "1h",
            _age,
        ),
    ] = ConsensusLimits().max_lag
    divergence_percent: Annotated[
        Decimal,
        Variable(
            "KASPARRO_DIVERGENCE_PERCENT",
            "difference between an asset's prices, in percent, above which it is marked as diverging",
            "5",
            _percent,
        ),
    ] = ConsensusLimits().divergence_percent
    history_retention: Annotated[
        HistoryRetention,
        Variable(
            "KASPARRO_HISTORY_RETENTION",
            "how history is thinned as it ages: raw:90d,1h:2y,1d:forever",
            "raw:forever",
            _history_retention,
        ),
    ] = HistoryRetention()
    admin_token: Annotated[
        Secret | None,
        Variable(
            "KASPARRO_ADMIN_TOKEN",
            "bearer token for routes that change state",
            "none: those routes do not exist",
            _admin_token,
            secret=True,
        ),
    ] = None
    api_keys: Annotated[
        tuple[ApiKey, ...],
        Variable(
            "KASPARRO_API_KEYS",
            "keys of the clients that may read: name:secret, …",
            "none: every client may read",
            _api_keys,
            secret=True,
        ),
    ] = ()
    rate_limit: Annotated[
        Rate | None,
        Variable(
            "KASPARRO_RATE_LIMIT", "requests per key or address: 10/s, 600/m, 5000/h; off", "off", _rate
        ),
    ] = None
    shared_limits: Annotated[
        bool,
        Variable(
            "KASPARRO_SHARED_LIMITS",
            "whether all processes of a database share the rate limit and the exports of a client: on or off",
            "off",
            _switch,
        ),
    ] = False
    trusted_proxies: Annotated[
        tuple[str, ...],
        Variable(
            "KASPARRO_TRUSTED_PROXIES",
            "addresses and networks whose X-Forwarded-For is trusted; * trusts the last address that any "
            "peer sends",
            "none",
            _proxies,
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Variable("KASPARRO_CORS_ORIGINS", "web origins whose pages may read; * for all", "none", _origins),
    ] = ()
    cache_mb: Annotated[
        int,
        Variable(
            "KASPARRO_CACHE_MB",
            "memory for cached responses per worker, in MB; 0 turns the cache off",
            "64",
            parse_integer(0, 65_536),
        ),
    ] = 64
    log: Annotated[
        Literal["text", "json"] | None,
        Variable(
            "KASPARRO_LOG",
            "log format: text or json",
            "text on a terminal, json elsewhere",
            parse_choice("text", "json"),
        ),
    ] = None
    log_level: Annotated[
        str,
        Variable(
            "KASPARRO_LOG_LEVEL",
            "lowest level that is logged: debug, info, warning or error",
            "info",
            parse_choice("debug", "info", "warning", "error"),
        ),
    ] = "info"

    @property
    def demo_home(self) -> Path:
        """The data directory of the demo's embedded database."""
        return self.home / "demo"

    @property
    def demo_interval(self) -> timedelta:
        """The time between the demo's runs: often enough to watch them."""
        return min(self.interval or DEMO_INTERVAL, DEMO_INTERVAL)

    @property
    def consensus_limits(self) -> ConsensusLimits:
        """Which quotes count, and which spread is remarkable."""
        return ConsensusLimits(max_lag=self.quote_max_lag, divergence_percent=self.divergence_percent)

    @property
    def retention(self) -> Retention:
        """How long and how much payload is stored."""
        return Retention(self.payload_retention, self.payload_max_size)


def declared(kind: type[msgspec.Struct]) -> dict[str, Variable]:
    """Each field of `kind` that an environment variable sets, with that variable."""
    hints = typing.get_type_hints(kind, include_extras=True)
    # The fields of a base class come first in a struct, and last in the documentation.
    fields = sorted(kind.__struct_fields__, key=lambda field: field in SourceSettings.__struct_fields__)
    return {
        field: part
        for field in fields
        for part in getattr(hints[field], "__metadata__", ())
        if isinstance(part, Variable)
    }


def variables(sources: Mapping[str, type[SourceSettings]]) -> list[Variable]:
    """All environment variables, in the documented order. `sources` gives each source's settings."""
    own = declared(Settings)
    names = ",".join(sources)
    own["sources"] = msgspec.structs.replace(own["sources"], default=names, parse=_sources(sources))
    listed = [*own.values()]
    after = [*own].index("interval") + 1
    return [
        *listed[:after],
        *(variable for kind in sources.values() for variable in declared(kind).values()),
        *listed[after:],
    ]


def load(environ: Mapping[str, str], sources: Mapping[str, type[SourceSettings]]) -> Settings:
    """Settings from the environment; an empty value counts as unset. `sources` gives each source's settings.

    Raises SettingsError, in one line that names the variable, its value (unless it is secret) and the
    allowed values.
    """
    by_name = {variable.name: variable for variable in variables(sources)}

    def values(kind: type[msgspec.Struct]) -> dict[str, Any]:
        texts = {
            field: (by_name[variable.name], environ.get(variable.name, "").strip())
            for field, variable in declared(kind).items()
        }
        return {field: _parsed(variable, text) for field, (variable, text) in texts.items() if text}

    def made(name: str, kind: type[SourceSettings]) -> SourceSettings:
        try:
            return kind(**values(kind))
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the settings of the source {name} are wrong: {error}") from error

    return Settings(
        **{
            "sources": tuple(sources),
            "source_settings": {name: made(name, kind) for name, kind in sources.items()},
            **values(Settings),
        }
    )


def _parsed(variable: Variable, text: str) -> Any:
    # A value with an @ may be a URL with a password, so no log shows it.
    hidden = variable.secret or "@" in text
    try:
        return variable.parse(text)
    except (TypeError, ValueError) as error:
        # From the parser of another package, such as `int`. The text of the error may contain the value.
        reason = "" if hidden else f": {one_line(error)}"
        raise SettingsError(f"{variable.name} cannot be used{reason}") from None
    except NotAllowed as error:
        shown = "has a value that is" if hidden else f"is {text!r}, which is"
        raise SettingsError(f"{variable.name} {shown} not allowed; allowed: {error}") from None


def unknown(environ: Mapping[str, str], sources: Mapping[str, type[SourceSettings]]) -> dict[str, str | None]:
    """Variables whose names begin like ours but are unknown, each with the most similar known name."""
    known = {variable.name for variable in variables(sources)}
    return {
        name: next(iter(difflib.get_close_matches(name, known, n=1)), None)
        for name in environ
        if name.startswith("KASPARRO_") and name not in known
    }
