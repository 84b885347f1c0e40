"""A bad cell of an archive costs itself, unless the numbers of its row or file are in doubt."""

import pytest

from kasparro.model.record import VALUE_FIELDS
from tests.support.archives import Read

HEADER = (
    "id,name,symbol,rank,price_usd,24h_volume_usd,market_cap_usd,available_supply,total_supply,max_supply"
)
ROW = "x,X Coin,X,1,2.5,{volume},{cap},{supply},7,,1515230661"


@pytest.mark.parametrize(
    ("cells", "invalid"),
    [
        ({"cap": "-1"}, ["market_cap_usd"]),
        ({"supply": "plenty", "volume": "soon"}, ["volume_24h_usd", "circulating_supply"]),
        ({"supply": "1" * 78}, ["circulating_supply"]),
    ],
)
async def test_a_bad_cell_costs_itself(load: Read, cells: dict[str, str], invalid: list[str]) -> None:
    row = ROW.format(**{"volume": "5", "cap": "6", "supply": "4"} | cells)
    good = ROW.format(volume=5, cap=6, supply=4).replace("x,", "y,", 1)
    outcome = await load(f"{HEADER},last_updated\n{good}\n{row}\n", "tickers.csv")

    assert [found["price_usd"] for found in outcome.rows] == ["2.5", "2.5"]
    assert outcome.rejects == []
    assert [(found.field, found.place, found.location) for found in outcome.invalid] == [
        (field, "line 3", "tickers.csv") for field in invalid
    ]
    values = outcome.rows[1]
    assert [field for field in VALUE_FIELDS[1:4] if values[field] == r"\N"] == invalid


@pytest.mark.parametrize(("price", "rows"), [("64.250", 0), ("64.25", 1), ("0.250", 1), ("$12.345", 0)])
async def test_a_price_that_may_be_grouped_as_its_neighbours_is_rejected(
    load: Read, price: str, rows: int
) -> None:
    good = "".join(f"c{n},C,C,1,2.5,5.5,6.5,4,7,,1515230661\n" for n in range(3))
    damaged = f"x,X,X,1,{price},5,14.748.800.659,4,7,,1515230661\n"
    outcome = await load(f"{HEADER},last_updated\n{good}{damaged}", "tickers.csv")

    assert len(outcome.rows) == 3 + rows
    assert [reject.field for reject in outcome.rejects] == ["price_usd"] * (1 - rows)


async def test_a_file_of_damaged_numbers_is_not_loaded(load: Read) -> None:
    good = "".join(f"c{n},C,C,1,2.5,5.5,6.5,4,7,,1515230661\n" for n in range(3))
    damaged = "".join(f"d{n},C,C,1,2.5,5,14.748.800.659,4,7,,1515230661\n" for n in range(4))
    outcome = await load(f"{HEADER},last_updated\n{good}{damaged}", "tickers.csv")

    assert outcome.rows == []
    assert "4 of 7 rows would be rejected, most often: market_cap_usd: not a number" in outcome.problem
