"""Links of rows to assets, as the resolver would write them."""

from typing import Any

from kasparro.model.asset import Asset, Link, Resolution
from kasparro.model.asset_documents import ResolutionDocuments
from kasparro.model.consensus import ConsensusLimits
from kasparro.store import assets
from kasparro.store.pool import Database
from kasparro.store.runs import RunRecord
from tests.support.batches import T0


def make_link(source: str, asset: str = "btc-bitcoin", source_id: str = "btc-bitcoin", **values: Any) -> Link:
    """A link of the record that `make_record` makes."""
    given = {"method": "names", "score": 0.9, "evidence": [], "symbol": "BTC", "name": "Bitcoin"}
    return Link(source=source, source_id=source_id, asset=asset, **{**given, **values})


async def resolve(database: Database, *links: Link, **options: Any) -> None:
    """Write these links as the resolver would."""
    run = await RunRecord.start(database, "etl", (), T0)
    found = {each.asset: Asset(asset=each.asset, symbol=each.symbol, name=each.name) for each in links}
    async with database.writing() as connection:
        await assets.apply(
            connection,
            ResolutionDocuments.of(Resolution(assets=[*found.values()], links=[*links], **options)),
            ConsensusLimits(),
            T0,
            run_id=run.id,
            depends_on="",
        )
