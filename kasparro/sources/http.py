"""The HTTP client of the API sources: limits, retries, payloads, and errors that name the cause."""

import asyncio
import email.utils
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlsplit

import msgspec
import stamina

from kasparro import __version__, tracing
from kasparro.concurrency import timeout
from kasparro.errors import SourceError, one_line
from kasparro.model.payload import FAILED_BODY_LIMIT, HEADER_LIMIT, STORED_HEADERS, Payload
from kasparro.sources.base import SourceContext
from kasparro.sources.error_words import find_words, shorten
from kasparro.sources.json_array import ArrayTooLong, split_array
from kasparro.tracing import traced

if TYPE_CHECKING:
    import aiohttp

# CoinPaprika's whole list is 2 MB. A much longer response is not read to its end.
BODY_LIMIT = 64 << 20
# The time limit for all calls of one source run, so that a slow upstream cannot hold up a run for hours. The
# longest list at the slowest rate (150 pages, 5 calls a minute) takes this long.
TIME_LIMIT_S = 1_800.0
# The time limits of one call: in total, to connect, and without receiving a byte.
CALL_S = 60.0
CONNECT_S = 10.0
SILENCE_S = 20.0
# Real validators are shorter. A longer one is ignored.
VALIDATOR_LIMIT = 500


class UpstreamError(SourceError):
    """An upstream call returned nothing usable."""

    def __init__(self, text: str, *, transient: bool, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.transient = transient
        """Whether the same call may succeed later."""
        self.retry_after_s = retry_after_s

    def at(self, location: str) -> "UpstreamError":
        """The same error, with the location where it happened."""
        return UpstreamError(
            f"{location}: {self}", transient=self.transient, retry_after_s=self.retry_after_s
        )


class RetryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How often a call is attempted until it succeeds: at most `attempts` times within `total_s`.

    The wait between two attempts starts at `initial_s` and doubles up to `longest_s`, with jitter. A
    Retry-After of the upstream replaces this wait if it fits into `total_s`.
    """

    attempts: int = 4
    total_s: float = 45
    initial_s: float = 0.5
    longest_s: float = 15


class Validators(msgspec.Struct, frozen=True, kw_only=True):
    """The validators of a response (RFC 9110, 8.8). A request with them gets a 304 if nothing changed."""

    etag: str | None = None
    last_modified: str | None = None


class UpstreamResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The undecoded items of a JSON array.

    `items` is None if the list has not changed since the validators that the request sent. `received_at` is
    when the response was complete.
    """

    items: list[msgspec.Raw] | None
    validators: Validators
    received_at: datetime


class UpstreamClient(AbstractAsyncContextManager["UpstreamClient"]):
    """Gets JSON lists from one upstream.

    `limiter` spaces out the calls. Each attempt is counted through `context` before it is made, and its
    response is saved before it is parsed. `access` says with which plan or key calls are made, and which
    settings decide it; errors that may depend on it show it.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        context: SourceContext,
        limiter: AbstractAsyncContextManager[None] | None = None,
        *,
        access: str = "",
    ) -> None:
        self._name = name
        self._base_url = base_url
        self._headers = headers
        self._secrets = [*headers.values(), *_account(base_url)]
        self._context = context
        self._limiter = limiter or nullcontext()
        self._access = access

    @property
    def host(self) -> str:
        """Which host is called."""
        return _host(self._base_url)

    async def __aenter__(self) -> Self:
        # Importing aiohttp takes a tenth of a second and 8 MB, so only a run that calls an upstream does it,
        # and not in the event loop. All other functions here are called after this.
        await asyncio.to_thread(import_module, "aiohttp")
        import aiohttp  # noqa: PLC0415

        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"kasparro/{__version__}", "Accept": "application/json", **self._headers},
            timeout=aiohttp.ClientTimeout(total=CALL_S, connect=CONNECT_S, sock_read=SILENCE_S),
            raise_for_status=False,
            trust_env=True,
            middlewares=(_no_hidden_retry,),
        )
        self._deadline = asyncio.get_running_loop().time() + TIME_LIMIT_S
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(
        self,
        path: str,
        parameters: Mapping[str, str],
        limits: RetryLimits,
        known: Validators | None = None,
        *,
        items_limit: int | None = None,
    ) -> UpstreamResponse:
        """Get the list at a path, with at most `items_limit` items. If it has not changed since `known`, the
        response has no items.

        Raises UpstreamError if the limits are reached, the source run's time is over, or a retry would not
        help. Raises SourceError if the call budget is spent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limits.total_s

        def backoff(error: Exception) -> bool | float:
            if not isinstance(error, UpstreamError) or not error.transient:
                return False
            if error.retry_after_s is None:
                return True
            return error.retry_after_s if loop.time() + error.retry_after_s < deadline else False

        try:
            async with timeout(self._deadline - loop.time()):
                async for attempt in stamina.retry_context(
                    on=backoff,
                    attempts=limits.attempts,
                    timeout=limits.total_s,
                    wait_initial=limits.initial_s,
                    wait_max=limits.longest_s,
                ):
                    with attempt:
                        return await self._call(path, parameters, known, limits, items_limit)
        except TimeoutError:
            raise UpstreamError(
                f"{self._name} took longer than the {TIME_LIMIT_S / 60:g} min that a run gives it",
                transient=False,
            ) from None
        raise AssertionError("unreachable: the last attempt raises")

    @traced("upstream call", lambda self, path, *_: {"server.address": self.host, "url.path": path}, "client")
    async def _call(
        self,
        path: str,
        parameters: Mapping[str, str],
        known: Validators | None,
        limits: RetryLimits,
        items_limit: int | None,
    ) -> UpstreamResponse:
        import aiohttp  # noqa: PLC0415

        async with self._limiter:
            await self._context.count_call()
            body = bytearray()
            response: aiohttp.ClientResponse | None = None
            try:
                # Following a redirect would send the key to another host.
                async with self._session.get(
                    self._base_url + path,
                    params=parameters,
                    headers=_conditions(known),
                    allow_redirects=False,
                ) as response:
                    await _read(response, body)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                if _sent_nothing(error):
                    await self._context.uncount_call()
                await self._save(path, parameters, response, bytes(body), complete=False)
                raise self._error(_failure(error), transient=True) from error
        tracing.note(http__response__status_code=response.status)
        payload = await self._save(
            path, parameters, response, bytes(body), complete=True, items_limit=items_limit
        )
        if response.status == 304 and known is not None:
            return UpstreamResponse(items=None, validators=known, received_at=payload.received_at)
        if response.status != 200:
            raise self._status_error(response, payload.body, limits)
        return UpstreamResponse(
            items=(await self._items(payload.body))[:items_limit],
            validators=_validators(response),
            received_at=payload.received_at,
        )

    async def _save(
        self,
        path: str,
        parameters: Mapping[str, str],
        response: "aiohttp.ClientResponse | None",
        body: bytes,
        *,
        complete: bool,
        items_limit: int | None = None,
    ) -> Payload:
        payload = Payload(
            path=path,
            parameters=parameters,
            received_at=self._context.clock(),
            status=response.status if response else None,
            headers={
                name: self._redacted(_as_utf8(response.headers[name][:HEADER_LIMIT]))
                for name in STORED_HEADERS
                if response is not None and name in response.headers
            },
            complete=complete,
            body=body,
            items_limit=items_limit,
        )
        if payload.succeeded:
            await self._context.save_payload(payload)
            return payload
        # A failed response is saved as evidence only: a part is enough, and it must not contain the key.
        body = self._redacted(body[:FAILED_BODY_LIMIT].decode("latin-1")).encode("latin-1")
        whole = complete and len(payload.body) <= FAILED_BODY_LIMIT
        await self._context.save_payload(msgspec.structs.replace(payload, complete=whole, body=body))
        return payload

    async def _items(self, body: bytes) -> list[msgspec.Raw]:
        try:
            return await parse_list(self._name, body)
        except UpstreamError as error:
            # Some upstreams send error messages with status 200.
            message = self._message(body)
            text = f"{error}; it says: {message}" if message else str(error)
            raise UpstreamError(text, transient=error.transient) from error

    def _status_error(
        self, response: "aiohttp.ClientResponse", body: bytes, limits: RetryLimits
    ) -> UpstreamError:
        status = response.status
        message = self._message(body)
        meaning = _MEANINGS.get(status, "")
        if 300 <= status < 400:
            meaning = "redirects are not followed; set the base URL to where the API is"
        text = f"answered {status}{f' ({meaning})' if meaning else ''}{f': {message}' if message else ''}"
        retry_after = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
        if retry_after is not None and status in {429, 503}:
            text += f"; asks to wait {retry_after:.0f} s"
            if retry_after >= limits.total_s:
                text += f", and a run waits {limits.total_s:.0f} s at most"
        if status in {400, 401, 403}:
            text += f"; we called {_host(self._base_url)}{f' {self._access}' if self._access else ''}"
        return self._error(
            text, transient=status in {408, 425, 429} or status >= 500, retry_after_s=retry_after
        )

    def _message(self, body: bytes) -> str:
        # Redacted first: a part of a key is no longer found.
        return shorten(self._redacted(find_words(body)))

    def _redacted(self, text: str) -> str:
        # An upstream may repeat a rejected key or password in its error message.
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    def _error(self, text: str, *, transient: bool, retry_after_s: float | None = None) -> UpstreamError:
        return UpstreamError(f"{self._name} {text}", transient=transient, retry_after_s=retry_after_s)


def _sent_nothing(error: Exception) -> bool:
    # No connection was made, so no request was sent: DNS, a refused connection, no route, TLS, a proxy.
    import aiohttp  # noqa: PLC0415

    return isinstance(
        error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    )


async def _no_hidden_retry(
    request: "aiohttp.ClientRequest", handler: "aiohttp.ClientHandlerType"
) -> "aiohttp.ClientResponse":
    import aiohttp  # noqa: PLC0415

    # aiohttp repeats a GET automatically if the connection was closed. The budget would not count that call.
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(one_line(error)) from error


def _conditions(known: Validators | None) -> dict[str, str]:
    headers = {
        "If-None-Match": known.etag if known else None,
        "If-Modified-Since": known.last_modified if known else None,
    }
    return {name: value for name, value in headers.items() if value is not None}


def _account(url: str) -> list[str]:
    # The password that a URL may contain, and the form in which aiohttp sends it.
    parts = urlsplit(url)
    if not parts.password:
        return []
    user, password = unquote(parts.username or ""), unquote(parts.password)
    return [password, parts.password, b64encode(f"{user}:{password}".encode()).decode()]


def _host(url: str) -> str:
    # Without the password that a URL may contain.
    return urlsplit(url).netloc.rpartition("@")[2]


def _validators(response: "aiohttp.ClientResponse") -> Validators:
    def header(name: str) -> str | None:
        # The value is sent back unchanged, so it must be printable ASCII.
        value = response.headers.get(name, "")
        plain = value.isascii() and value.isprintable() and 0 < len(value) <= VALIDATOR_LIMIT
        return value if plain else None

    return Validators(etag=header("ETag"), last_modified=header("Last-Modified"))


_MEANINGS = {
    401: "the key is missing or not accepted",
    402: "the month's quota is used up, or the plan does not include this",
    403: "access denied: a wrong key, or this address is blocked",
    404: "no such path; check the base URL",
    429: "too many requests",
}


async def parse_list(name: str, body: bytes) -> list[msgspec.Raw]:
    """Split the body that the upstream of this name sent into the items of its list.

    Raises UpstreamError if the body is not a list, or is longer than the list of any API.
    """
    try:
        return await asyncio.to_thread(split_array, body)
    except ArrayTooLong as error:
        raise UpstreamError(f"{name} sent a list that is too long: {error}", transient=True) from error
    except ValueError as error:
        kinds = {b"": "an empty body", b"<": "an HTML page"}
        kind = kinds.get(body.lstrip()[:1], f"a body that is not a JSON list ({error})")
        raise UpstreamError(f"{name} sent {kind}", transient=True) from error


def _failure(error: Exception) -> str:
    """Describe why there is no complete response."""
    import aiohttp  # noqa: PLC0415

    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {one_line(error)}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"sent an incomplete or damaged response: {one_line(error)}"
    return f"could not be read: {one_line(error)}"


async def _read(response: "aiohttp.ClientResponse", body: bytearray) -> None:
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > BODY_LIMIT:
            raise ValueError(f"the response is longer than {BODY_LIMIT >> 20} MiB")


def _as_utf8(header: str) -> str:
    # Bytes that are not UTF-8 arrive as lone surrogates, which PostgreSQL cannot store.
    return header.encode("utf-8", "backslashreplace").decode()


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """The seconds of a Retry-After header in either form (RFC 9110, 10.2.3); None if it is not valid."""
    if header is None:
        return None
    header = header.strip()
    if re.fullmatch(r"\d{1,9}", header, re.ASCII):
        return float(header)
    try:
        at = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max((at - now) / timedelta(seconds=1), 0.0)
