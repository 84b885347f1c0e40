"""One page of an API's list: what its upstream is asked of it, and what the walk keeps of the answer."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from hashlib import blake2b

from kasparro.model.batch import CrawledPage
from kasparro.sources.http import UpstreamResponse, Validators

# A program that reads answers in another way reads all of them again when this moves.
READING = "1"
# However often an upstream says that nothing has changed, it is not believed for longer.
FULL_AGAIN = timedelta(days=1)


def request_fingerprint(base_url: str, path: str, parameters: Mapping[str, str]) -> str:
    """What a page's validators are good for: this request, read by this program. It tells no secret."""
    told = "\n".join([READING, base_url, path, *(f"{name}={value}" for name, value in parameters.items())])
    return blake2b(told.encode(), digest_size=16).hexdigest()


def validators(page: CrawledPage | None, told: str, now: datetime) -> Validators | None:
    """What to ask with, so that an upstream that still has what we read need not send it; None for all."""
    if (
        page is None
        or page.request_fingerprint != told
        or not timedelta() <= now - page.read_at <= FULL_AGAIN
    ):
        return None
    known = Validators(etag=page.etag, last_modified=page.last_modified)
    return None if known == Validators() else known


def settled(
    answer: UpstreamResponse,
    earlier: CrawledPage | None,
    *,
    number: int,
    crawl_started_at: datetime,
    remaining_pages: tuple[int, ...],
    now: datetime,
    is_last: bool,
    sound: bool,
    told: str,
) -> CrawledPage:
    """The page as its batch commits it. Where a record of it was refused, or gave way to what another page
    had told of its coin, the whole of it is asked for again: `sound` is whether none was.
    """
    unchanged = answer.items is None and earlier is not None
    return CrawledPage(
        number=number,
        crawl_started_at=crawl_started_at,
        remaining_pages=remaining_pages,
        fetched_at=now,
        read_at=earlier.read_at if unchanged and earlier is not None else now,
        records=records(answer, earlier),
        is_last=is_last,
        request_fingerprint=told,
        etag=answer.validators.etag if sound else None,
        last_modified=answer.validators.last_modified if sound else None,
    )


def records(answer: UpstreamResponse, earlier: CrawledPage | None) -> int:
    """How many records the answer tells, or stands for where nothing has changed."""
    if answer.items is not None:
        return len(answer.items)
    return earlier.records if earlier is not None else 0
