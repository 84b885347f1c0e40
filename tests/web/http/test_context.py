"""Request ids."""

import aiohttp
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("proposed", "accepted"),
    [("My-id_1.2", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("<b>", False), ("é", False)],
)
async def test_valid_request_id_of_the_client_is_used(
    client: aiohttp.ClientSession, proposed: str, accepted: bool
) -> None:
    async with client.get("/health/live", headers={"X-Request-ID": proposed}) as response:
        assert (response.headers["X-Request-ID"] == proposed) is accepted
