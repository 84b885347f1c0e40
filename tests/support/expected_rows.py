"""Which rows a query of /data must return, and in which order, decided in Python without our SQL."""

from typing import Any

from kasparro.store.selection import Filters

DATA_KEY = ("source", "source_id")


def sorted_keys(
    rows: list[dict[str, Any]], sort: str, key: tuple[str, ...] = DATA_KEY
) -> list[tuple[str, ...]]:
    """The keys of the rows, sorted by value, nulls last, ties by key.

    Texts compare by code point, as their bytes in UTF-8 do.
    """
    column = sort.removeprefix("-")
    ordered = sorted(rows, key=lambda row: tuple(row[name] for name in key))
    present = [row for row in ordered if row[column] is not None]
    # The sort is stable, also in reverse.
    present.sort(key=lambda row: row[column], reverse=sort.startswith("-"))
    absent = [row for row in ordered if row[column] is None]
    return [tuple(row[name] for name in key) for row in present + absent]


def matches(row: dict[str, Any], filters: Filters) -> bool:
    """Whether a row passes the filters."""

    def has(text: str | None) -> bool:
        return text is not None and filters.text is not None and filters.text.lower() in text.lower()

    return (
        (not filters.sources or row["source"] in filters.sources)
        and (
            not filters.symbols
            or (
                (row["symbol"] or "").lower() in {s.lower() for s in filters.symbols}
                and row["symbol"] is not None
            )
        )
        and (filters.text is None or has(row["name"]) or has(row["symbol"]))
        and (not filters.ids or row["source_id"] in filters.ids)
        and (filters.rank_max is None or (row["rank"] is not None and row["rank"] <= filters.rank_max))
        and (
            filters.price_usd_min is None
            or (row["price_usd"] is not None and row["price_usd"] >= filters.price_usd_min)
        )
        and (filters.updated_since is None or row["updated_at"] >= filters.updated_since)
        and (filters.diverging is None or row["diverging"] == filters.diverging)
        and (filters.source_count_min is None or row["source_count"] >= filters.source_count_min)
    )
