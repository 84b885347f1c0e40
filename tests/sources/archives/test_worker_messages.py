"""Messages between the service and the archive worker."""

from io import BytesIO

from kasparro.sources.archives.worker_messages import OpenArchive, encode, read_request
from tests.support.archives import NOW


def test_request_round_trip() -> None:
    request = OpenArchive(path=b"/a/\xff.csv", root=None, name="a.csv", now=NOW)
    assert read_request(BytesIO(encode(request))) == request
    assert read_request(BytesIO()) is None
