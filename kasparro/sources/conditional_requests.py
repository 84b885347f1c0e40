"""Decides which pages are requested with validators, and describes each fetched page for its batch."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import blake2b

from kasparro.model.batch import CrawledPage
from kasparro.sources.http import UpstreamResponse, Validators

# Increase it if the code reads records differently. Every page is then fetched in full once.
READER_VERSION = "2"
# A page is fetched in full after this time, even if the upstream reports no change.
FULL_AGAIN = timedelta(days=1)


def request_fingerprint(base_url: str, path: str, parameters: Mapping[str, str]) -> str:
    """A hash of the request and READER_VERSION, without secrets.

    Validators are sent only with a request that has the same fingerprint.
    """
    lines = [READER_VERSION, base_url, path, *(f"{name}={value}" for name, value in parameters.items())]
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def validators(page: CrawledPage | None, fingerprint: str, now: datetime) -> Validators | None:
    """The validators for the next request of a page; None: request it in full."""
    if page is None or page.request_fingerprint != fingerprint:
        return None
    if not timedelta() <= now - page.read_at <= FULL_AGAIN:
        return None
    known = Validators(etag=page.etag, last_modified=page.last_modified)
    return None if known == Validators() else known


def crawled_page(
    response: UpstreamResponse,
    earlier: CrawledPage | None,
    *,
    number: int,
    crawl_started_at: datetime,
    remaining_pages: tuple[int, ...],
    now: datetime,
    is_last: bool,
    is_complete: bool,
    fingerprint: str,
) -> CrawledPage:
    """The page as its batch commits it.

    `is_complete` means that every record was accepted and none repeats a coin of an earlier page. An
    incomplete page gets no validators, so that it is fetched in full next time.
    """
    unchanged = response.items is None and earlier is not None
    return CrawledPage(
        number=number,
        crawl_started_at=crawl_started_at,
        remaining_pages=remaining_pages,
        fetched_at=now,
        read_at=earlier.read_at if unchanged and earlier is not None else now,
        records=record_count(response, earlier),
        is_last=is_last,
        request_fingerprint=fingerprint,
        etag=response.validators.etag if is_complete else None,
        last_modified=response.validators.last_modified if is_complete else None,
    )


def record_count(response: UpstreamResponse, earlier: CrawledPage | None) -> int:
    """How many records the response has; for an unchanged page, how many the earlier response had."""
    if response.items is not None:
        return len(response.items)
    return earlier.records if earlier is not None else 0
