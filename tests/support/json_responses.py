"""Requests for JSON, and what tests need of the responses."""

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import aiohttp
from yarl import URL

from kasparro.store.selection import FIELDS


async def get_json(client: aiohttp.ClientSession, path: str, status: int = 200) -> Any:
    """The JSON of a response that must have this status."""
    async with client.get(path) as response:
        assert response.status == status, await response.text()
        return await response.json(content_type=None)


async def get_exact(client: aiohttp.ClientSession, url: str, status: int = 200) -> Any:
    """The JSON of a response that must have this status, with numbers as Decimal. `url` is sent as it is."""
    async with client.get(URL(url, encoded=True)) as response:
        body = await response.text()
        assert response.status == status, body
        return json.loads(body, parse_float=Decimal, parse_int=Decimal)


def source_ids(page: Any) -> list[str]:
    """The source_id of each row of a page of /data."""
    return [row["source_id"] for row in page["data"]]


def parse_rows(rows: str, fields: Mapping[str, type] = FIELDS) -> list[dict[str, Any]]:
    """Rows of a list with these fields, given as JSON objects with commas between, with the values that the
    table has."""
    return [
        {
            field: datetime.fromisoformat(value) if value is not None and fields[field] is datetime else value
            for field, value in row.items()
        }
        for row in json.loads(f"[{rows}]", parse_int=Decimal, parse_float=Decimal)
    ]
