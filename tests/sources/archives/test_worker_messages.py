"""Messages between the service and the archive worker."""

from io import BytesIO

from kasparro.sources.archives.worker_messages import Ask, next_request, packed
from tests.support.archives import NOW


def test_request_round_trip() -> None:
    request = Ask(path=b"/a/\xff.csv", root=None, name="a.csv", now=NOW)
    assert next_request(BytesIO(packed(request))) == request
    assert next_request(BytesIO()) is None
