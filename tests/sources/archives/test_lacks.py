"""Which of symbol, name and rank a file has no place for."""

from pathlib import Path

import pytest

from kasparro.sources.archives.files import ArchiveFile
from kasparro.sources.archives.reader import Portion, read_archive
from tests.sources.archives.conftest import described, job_for

DESCRIBED = '[coin]\nid = "bitcoin"\nsymbol = "BTC"\n'


@pytest.mark.parametrize(
    ("name", "content", "description", "lacks"),
    [
        ("all.csv", "rank,id,symbol,name,price_usd,last_updated\n1,b,B,B,5,1515230661\n", "", ()),
        # A blank cell is null, and a column of them is a column.
        ("blank.csv", "rank,id,symbol,name,price_usd,last_updated\n,b,,,5,1515230661\n", "", ()),
        ("ids.csv", "id,price_usd,last_updated\nb,5,1515230661\n", "", ("symbol", "name", "rank")),
        ("names.csv", "name,price_usd,last_updated\nBitcoin,5,1515230661\n", "", ("symbol", "rank")),
        ("symbols.csv", "symbol,price_usd,last_updated\nBTC,5,1515230661\n", "", ("name", "rank")),
        # By its name it is known which coin it is, not what that is called.
        ("bitcoin-usd-max.csv", "snapped_at,price\n2018-02-01,9\n", "", ("symbol", "name", "rank")),
        # By its description; what that does not say of the coin, the columns may no longer say.
        ("bitcoin-usd.csv", "date,price\n2018-02-01,9\n", DESCRIBED, ("name", "rank")),
        ("x-usd.csv", "date,name,symbol,price\n2018-02-01,B,B,9\n", DESCRIBED, ("name", "rank")),
        # Numbers in a column of names are no names.
        ("numbers.csv", "symbol,name,price_usd,last_updated\nBTC,1,5,1515230661\n", "", ("name", "rank")),
    ],
)
async def test_a_layout_says_what_it_has_no_place_for(
    tmp_path: Path, name: str, content: str, description: str, lacks: tuple[str, ...]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    if description:
        (tmp_path / f"{name}.toml").write_text(description)

    with ArchiveFile.at(path) as file:
        job = job_for(path, said=described(path))
        (message,) = [message async for message in read_archive(file, job)]

    assert isinstance(message, Portion)
    assert (message.batch.rows, message.batch.lacks) == (1, lacks)


async def test_a_null_and_a_lacking_field_make_two_contents(tmp_path: Path) -> None:
    path = tmp_path / "a-usd.csv"
    hashes = set()
    for header, cells in (("rank,", ","), ("", "")):
        path.write_text(f"{header}id,price_usd,last_updated\n{cells}b,5,1515230661\n")
        with ArchiveFile.at(path) as file:
            (message,) = [message async for message in read_archive(file, job_for(path))]
        assert isinstance(message, Portion)
        hashes.add(message.batch.lines.keys.split(b"\t")[1])

    assert len(hashes) == 2
