"""Single requests, and what comes back."""

import aiohttp


async def fetch(
    client: aiohttp.ClientSession, path: str, address: str | None = None
) -> tuple[int, str | None, bytes]:
    """The status, Retry-After and body of a response; `address` goes into X-Forwarded-For."""
    headers = {} if address is None else {"X-Forwarded-For": address}
    async with client.get(path, headers=headers) as response:
        return response.status, response.headers.get("Retry-After"), await response.read()


async def status(client: aiohttp.ClientSession, path: str = "/data", **headers: str) -> int:
    """The status of a response. Header names are written with underscores, as X_API_Key."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.get(path, headers=sent) as response:
        return response.status
