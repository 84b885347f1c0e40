"""`/data` as most services build it, to compare with: FastAPI, SQLAlchemy and Pydantic on the same table.

Pages are by offset, and each page counts the rows. `python -m tests.bench.fastapi_app PORT` reads
DATABASE_URL.
"""

import csv
import io
import logging
import os
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import DateTime, Select, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"), pool_size=8, max_overflow=8
)
sessions = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI(title="Comparison")


class Base(DeclarativeBase):
    """The declarative base."""


class UnifiedData(Base):
    """The newest record of every coin of every source."""

    __tablename__ = "unified_data"

    source: Mapped[str] = mapped_column(primary_key=True)
    source_id: Mapped[str] = mapped_column(primary_key=True)
    asset: Mapped[str | None]
    symbol: Mapped[str | None]
    name: Mapped[str | None]
    rank: Mapped[int | None]
    price_usd: Mapped[Decimal | None]
    market_cap_usd: Mapped[Decimal | None]
    volume_24h_usd: Mapped[Decimal | None]
    circulating_supply: Mapped[Decimal | None]
    total_supply: Mapped[Decimal | None]
    max_supply: Mapped[Decimal | None]
    percent_change_1h: Mapped[Decimal | None]
    percent_change_24h: Mapped[Decimal | None]
    percent_change_7d: Mapped[Decimal | None]
    observed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    first_seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class Record(BaseModel):
    """One row."""

    model_config = ConfigDict(from_attributes=True)

    source: str
    source_id: str
    asset: str | None
    symbol: str | None
    name: str | None
    rank: int | None
    price_usd: Decimal | None
    market_cap_usd: Decimal | None
    volume_24h_usd: Decimal | None
    circulating_supply: Decimal | None
    total_supply: Decimal | None
    max_supply: Decimal | None
    percent_change_1h: Decimal | None
    percent_change_24h: Decimal | None
    percent_change_7d: Decimal | None
    observed_at: datetime
    first_seen_at: datetime
    updated_at: datetime


class Pagination(BaseModel):
    """The page's number and the size of the list."""

    limit: int
    page: int
    pages: int
    total: int


class DataPage(BaseModel):
    """A page of rows."""

    data: list[Record]
    pagination: Pagination


async def session() -> AsyncIterator[AsyncSession]:
    """A session for one request."""
    async with sessions() as opened:
        yield opened


Session = Annotated[AsyncSession, Depends(session)]


def ordered(symbol: str | None) -> Select[UnifiedData]:
    """All rows by rank, or those of one symbol."""
    rows = select(UnifiedData).order_by(
        UnifiedData.rank.nulls_last(), UnifiedData.source, UnifiedData.source_id
    )
    return rows if symbol is None else rows.where(func.lower(UnifiedData.symbol) == symbol.lower())


@app.get("/data")
async def read_data(
    session: Session,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    page: Annotated[int, Query(ge=1)] = 1,
    symbol: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> DataPage:
    """A page of rows by its number."""
    rows = ordered(symbol)
    total = await session.scalar(select(func.count()).select_from(rows.order_by(None).subquery())) or 0
    found = await session.scalars(rows.limit(limit).offset((page - 1) * limit))
    return DataPage(
        data=[Record.model_validate(row) for row in found],
        pagination=Pagination(limit=limit, page=page, pages=-(-total // limit), total=total),
    )


@app.get("/data.csv")
async def export(session: Session) -> StreamingResponse:
    """All rows as CSV, streamed."""

    async def lines() -> AsyncIterator[str]:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(Record.model_fields)
        async for row in await session.stream_scalars(ordered(None).execution_options(yield_per=1000)):
            writer.writerow([getattr(row, name) for name in Record.model_fields])
            if text.tell() > 65_536:
                yield text.getvalue()
                text.seek(0)
                text.truncate()
        yield text.getvalue()

    return StreamingResponse(lines(), media_type="text/csv")


if __name__ == "__main__":
    # wrk closes connections during exports, and FastAPI logs a traceback for each.
    logging.disable()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
