"""The one HTTP client of the API sources: limits, retries and errors in words."""

import asyncio
import email.utils
import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
import stamina

from kasparro import __version__
from kasparro.concurrency import timeout
from kasparro.errors import SourceError, one_line
from kasparro.model.payload import EVIDENCE_BYTES, HEADER_LIMIT, KEPT_HEADERS, Payload
from kasparro.sources.base import SourceContext
from kasparro.sources.json_array import TooMany, elements

# CoinPaprika's whole list is 2 MB; what is far beyond any real answer is not read to its end.
BODY_LIMIT = 64 << 20
# How long all calls of one pass may take together: an upstream that drips holds up no run for hours. The
# longest list at the slowest rate, 150 pages at 5 calls a minute, takes as long.
TIME_LIMIT_S = 1_800.0
# The same of one call, and in it of the connection and of each silence.
CALL_S = 60.0
CONNECT_S = 10.0
SILENCE_S = 20.0
# Longer is no validator that anybody sends.
VALIDATOR_LIMIT = 500


class UpstreamError(SourceError):
    """One call upstream gave nothing to use."""

    def __init__(self, text: str, *, passing: bool, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.passing = passing
        """Whether the same call may do better later."""
        self.retry_after_s = retry_after_s

    def at(self, place: str) -> "UpstreamError":
        """The same, told with the place where it happened."""
        return UpstreamError(f"{place}: {self}", passing=self.passing, retry_after_s=self.retry_after_s)


class RetryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long to try for one answer: at most `attempts` calls within `total_s`, waiting from `initial_s`
    up to `longest_s` between them, doubled each time with jitter; or as long as the upstream asks, where
    that fits in `total_s`."""

    attempts: int = 4
    total_s: float = 45
    initial_s: float = 0.5
    longest_s: float = 15


class Validators(msgspec.Struct, frozen=True, kw_only=True):
    """What an upstream knows an answer by, to be asked whether it still has that one (RFC 9110, 8.8)."""

    etag: str | None = None
    last_modified: str | None = None


class UpstreamResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The items of a JSON array, each still undecoded; None where the upstream still has what the request's
    validators stand for. `received_at` is when it had come.
    """

    items: list[msgspec.Raw] | None
    validators: Validators
    received_at: datetime


class UpstreamClient(AbstractAsyncContextManager["UpstreamClient"]):
    """Gets JSON bodies from one upstream.

    `limiter` spaces out the calls. The pass books each one before it is made, failed ones too, and keeps what
    was answered before anybody reads it.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        headers: Mapping[str, str],
        passing: SourceContext,
        limiter: AbstractAsyncContextManager[None] | None = None,
    ) -> None:
        self._name = name
        self._base_url = base_url
        self._headers = headers
        self._passing = passing
        self._limiter = limiter or nullcontext()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"User-Agent": f"kasparro/{__version__}", "Accept": "application/json", **self._headers},
            timeout=aiohttp.ClientTimeout(total=CALL_S, connect=CONNECT_S, sock_read=SILENCE_S),
            raise_for_status=False,
            trust_env=True,
            middlewares=(_once,),
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
        patience: RetryLimits,
        known: Validators | None = None,
        *,
        items_limit: int | None = None,
    ) -> UpstreamResponse:
        """What a path answers, unless it is what `known` stands for; of its items the first `items_limit`.

        Raises UpstreamError when patience or the whole pass's time limit is at its end or trying again is of
        no use, SourceError where the call budget is spent.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience.total_s

        def backoff(error: Exception) -> bool | float:
            if not isinstance(error, UpstreamError) or not error.passing:
                return False
            if error.retry_after_s is None:
                return True
            return error.retry_after_s if loop.time() + error.retry_after_s < deadline else False

        try:
            async with timeout(self._deadline - loop.time()):
                async for attempt in stamina.retry_context(
                    on=backoff,
                    attempts=patience.attempts,
                    timeout=patience.total_s,
                    wait_initial=patience.initial_s,
                    wait_max=patience.longest_s,
                ):
                    with attempt:
                        return await self._call(path, parameters, known, patience, items_limit)
        except TimeoutError:
            raise UpstreamError(
                f"{self._name} took longer than the {TIME_LIMIT_S / 60:g} min that a run gives it",
                passing=False,
            ) from None
        raise AssertionError("unreachable: the last attempt raises")

    async def _call(
        self,
        path: str,
        parameters: Mapping[str, str],
        known: Validators | None,
        patience: RetryLimits,
        items_limit: int | None,
    ) -> UpstreamResponse:
        async with self._limiter:
            await self._passing.count_call()
            body = bytearray()
            response: aiohttp.ClientResponse | None = None
            try:
                # A redirect would carry the key to another host.
                async with self._session.get(
                    self._base_url + path,
                    params=parameters,
                    headers=_conditions(known),
                    allow_redirects=False,
                ) as response:
                    await _read(response, body)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, _NOTHING_SENT):
                    await self._passing.uncount_call()
                await self._keep(path, parameters, response, bytes(body), complete=False)
                raise self._error(_trouble(error), passing=True) from error
        payload = await self._keep(
            path, parameters, response, bytes(body), complete=True, items_limit=items_limit
        )
        if response.status == 304 and known is not None:
            return UpstreamResponse(items=None, validators=known, received_at=payload.received_at)
        if response.status != 200:
            raise self._refusal(response, payload.body, patience)
        return UpstreamResponse(
            items=(await self._items(payload.body))[:items_limit],
            validators=_validators(response),
            received_at=payload.received_at,
        )

    async def _keep(
        self,
        path: str,
        parameters: Mapping[str, str],
        response: aiohttp.ClientResponse | None,
        body: bytes,
        *,
        complete: bool,
        items_limit: int | None = None,
    ) -> Payload:
        payload = Payload(
            path=path,
            parameters=parameters,
            received_at=self._passing.clock(),
            status=response.status if response else None,
            headers={
                name: self._redacted(_storable(response.headers[name][:HEADER_LIMIT]))
                for name in KEPT_HEADERS
                if response is not None and name in response.headers
            },
            complete=complete,
            body=body,
            items_limit=items_limit,
        )
        if payload.good:
            await self._passing.keep(payload)
            return payload
        # To be looked at, not to be read again: a part will do, and the key must not stand in it.
        body = self._redacted(body[:EVIDENCE_BYTES].decode("latin-1")).encode("latin-1")
        whole = complete and len(payload.body) <= EVIDENCE_BYTES
        await self._passing.keep(msgspec.structs.replace(payload, complete=whole, body=body))
        return payload

    async def _items(self, body: bytes) -> list[msgspec.Raw]:
        try:
            return await parse_list(self._name, body)
        except UpstreamError as error:
            # Errors come under a 200 too.
            said = self._redacted(_said(body))
            text = f"{error}; it says: {said}" if said else str(error)
            raise UpstreamError(text, passing=error.passing) from error

    def _refusal(self, response: aiohttp.ClientResponse, body: bytes, patience: RetryLimits) -> UpstreamError:
        status = response.status
        said = self._redacted(_said(body))
        meaning = _MEANINGS.get(status, "")
        if 300 <= status < 400:
            meaning = "redirects are not followed; set the base URL to where the API is"
        text = f"answered {status}{f' ({meaning})' if meaning else ''}{f': {said}' if said else ''}"
        retry_after = retry_after_s(response.headers.get("Retry-After"), datetime.now(UTC))
        if retry_after is not None and status in {429, 503}:
            text += f"; asks to wait {retry_after:.0f} s"
            if retry_after >= patience.total_s:
                text += f", and a run waits {patience.total_s:.0f} s at most"
        return self._error(
            text, passing=status in {408, 425, 429} or status >= 500, retry_after_s=retry_after
        )

    def _redacted(self, text: str) -> str:
        # An upstream may repeat the key that it refuses.
        for secret in self._headers.values():
            text = text.replace(secret, "***")
        return text

    def _error(self, text: str, *, passing: bool, retry_after_s: float | None = None) -> UpstreamError:
        return UpstreamError(f"{self._name} {text}", passing=passing, retry_after_s=retry_after_s)


# No connection came about, so the upstream was asked nothing: DNS, refused, unreachable, TLS, a proxy.
_NOTHING_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    # aiohttp repeats a GET whose connection was cut, unseen: a call that nobody had booked.
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise aiohttp.ClientConnectionError(one_line(error)) from error


def _conditions(known: Validators | None) -> dict[str, str]:
    told = {
        "If-None-Match": known.etag if known else None,
        "If-Modified-Since": known.last_modified if known else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _validators(response: aiohttp.ClientResponse) -> Validators:
    def header(name: str) -> str | None:
        # Sent back as it came, so nothing is kept that is no plain header.
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
    """The items of a list that the upstream of this name answered. Raises UpstreamError where it is none, or
    longer than any that there is."""
    try:
        return await asyncio.to_thread(elements, body)
    except TooMany as error:
        raise UpstreamError(
            f"{name} answered a list longer than any there is: {error}", passing=True
        ) from error
    except ValueError as error:
        kinds = {b"": "with an empty body", b"<": "an HTML page"}
        kind = kinds.get(body.lstrip()[:1], f"no JSON list ({error})")
        raise UpstreamError(f"{name} answered {kind}", passing=True) from error


def _trouble(error: Exception) -> str:
    """What came in the way of an answer."""
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {one_line(error)}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return f"sent an answer that breaks off or is damaged: {one_line(error)}"
    return f"could not be read: {one_line(error)}"


async def _read(response: aiohttp.ClientResponse, body: bytearray) -> None:
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > BODY_LIMIT:
            raise ValueError(f"the answer is longer than {BODY_LIMIT >> 20} MiB")


class _Status(msgspec.Struct):
    error_message: str = ""


class _ErrorBody(msgspec.Struct):
    # The three shapes that CoinGecko uses, and CoinPaprika's one.
    error: str | None = None
    status: _Status | None = None


def _said(body: bytes) -> str:
    """What an error body says, in one short line; nothing for an HTML page."""
    try:
        decoded = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = "" if body.lstrip()[:1] in {b"<", b"{", b"["} else body[:200].decode("ascii", "ignore")
    else:
        text = decoded.error or (decoded.status.error_message if decoded.status else "")
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:160]}…"


def _storable(header: str) -> str:
    # Bytes that are not UTF-8 come as halves of surrogate pairs.
    return header.encode("utf-8", "backslashreplace").decode()


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks to wait, in either form (RFC 9110, 10.2.3); None for none."""
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
