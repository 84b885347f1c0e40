"""Examples of the responses, for the OpenAPI document."""

from typing import Any

_RECORD = {
    "source": "coingecko",
    "source_id": "bitcoin",
    "asset": "btc-bitcoin",
    "symbol": "btc",
    "name": "Bitcoin",
    "rank": 1,
    "price_usd": 64210.5,
    "market_cap_usd": 1265000000000,
    "volume_24h_usd": 31200000000,
    "circulating_supply": 19700000,
    "total_supply": 21000000,
    "max_supply": 21000000,
    "percent_change_1h": 0.12,
    "percent_change_24h": -1.5,
    "percent_change_7d": 4.25,
    "observed_at": "2024-06-01T12:00:00.000000Z",
    "first_seen_at": "2024-05-01T09:00:02.500000Z",
    "updated_at": "2024-06-01T12:00:31.250000Z",
}
_ASSET = {
    "asset": "btc-bitcoin",
    "symbol": "BTC",
    "name": "Bitcoin",
    "rank": 1,
    "price_usd": 64208.25,
    "price_spread_percent": 0.007,
    "source_count": 2,
    "diverging": False,
    "market_cap_usd": 1265100000000,
    "volume_24h_usd": 31350000000,
    "circulating_supply": 19700000,
    "total_supply": 21000000,
    "max_supply": 21000000,
    "percent_change_1h": 0.11,
    "percent_change_24h": -1.45,
    "percent_change_7d": 4.2,
    "observed_at": "2024-06-01T12:00:00.000000Z",
    "oldest_observed_at": "2024-06-01T11:58:12.000000Z",
}
_EVIDENCE = [{"kind": "symbol and name", "detail": "both are BTC, Bitcoin"}]
_PAGINATION = {
    "limit": 50,
    "page": 1,
    "pages": 1,
    "total": 1,
    "next": None,
    "next_cursor": None,
}
_RECORDS = {"fetched": 250, "valid": 249, "rejected": 1, "inserted": 3, "updated": 240, "unchanged": 6}
_DRIFT = {
    "field": "last_price",
    "change": "appeared",
    "records": 250,
    "of": 250,
    "before": "not there",
    "after": "number in 250 of 250 records",
    "samples": ["64210.5", "3071.88"],
    "nearest": "current_price",
    "confidence": 0.83,
    "since_run": 42,
}
_ANOMALY = {
    "kind": "few-records",
    "detail": "250 records, usually 12,000",
    "value": 250,
    "usual": 12000,
    "lasting": False,
    "since_run": 42,
    "since": "2024-06-01T12:00:09.4Z",
}
_RUN: dict[str, Any] = {
    "id": 42,
    "trigger": "schedule",
    "status": "succeeded",
    "started_at": "2024-06-01T12:00:00Z",
    "finished_at": "2024-06-01T12:00:09.5Z",
    "duration_s": 9.5,
    "records": _RECORDS,
    "sources": [
        {
            "source": "coingecko",
            "status": "succeeded",
            "started_at": "2024-06-01T12:00:00Z",
            "finished_at": "2024-06-01T12:00:09.4Z",
            "duration_s": 9.4,
            "records": _RECORDS,
            "corrected": 0,
            "rejects": [{"location": None, "field": "price_usd", "reason": "below zero", "rejects": 1}],
            "invalid_fields": [
                {
                    "location": None,
                    "field": "market_cap_usd",
                    "reason": "below zero",
                    "records": 1,
                    "samples": ["some-token: below zero: '-1'"],
                }
            ],
            "rejected_files": [],
            "calls": 1,
            "payloads": 1,
            "payload_bytes": 23456,
            "note": "page 1 of 1",
            "drift": [_DRIFT],
            "anomalies": [_ANOMALY],
            "prices": {"coins": 240, "size_percent": 0.41, "change_percent": -0.08, "after_s": 3600},
            "error": None,
        }
    ],
    "error": None,
}
_DIFFERENCE = {"duration_s": 0.0, "calls": 0, "records": dict.fromkeys(_RECORDS, 0)}
_PAGINATION = {
    "limit": 50,
    "page": 1,
    "pages": 1,
    "total": 1,
    "next": None,
    "next_cursor": None,
}
# By the name of the struct, or for text by its media type.
EXAMPLES: dict[str, Any] = {
    "text/plain": "# TYPE kasparro_database_up gauge\nkasparro_database_up 1.0\n",
    "text/csv": 'source,symbol,price_usd\r\n"coingecko","btc",64210.5\r\n',
    "text/event-stream": "id: 1146a2fd5af0-17-0\nevent: version\n"
    'data: {"data_version":17,"committed_at":"2026-11-27T10:15:47.783419Z","run":3,"changed":{"count":1,'
    '"rows":[["coingecko","bitcoin"]],"assets":["btc-bitcoin"]},"truncated":false}\n\n',
    "application/x-ndjson": '{"source":"coingecko","symbol":"btc","price_usd":64210.5}\n',
    "Record": _RECORD,
    "DataPage": {
        "data": [_RECORD],
        "pagination": {
            "limit": 1,
            "page": 1,
            "pages": 15000,
            "total": 15000,
            "next": "/data?limit=1&cursor=ksQIl1v0",
            "next_cursor": "ksQIl1v0",
        },
    },
    "AssetHistoryPage": {
        "data": [
            {
                "time": "2024-06-01T00:00:00.000000Z",
                "open": 67491.4,
                "high": 67839.1,
                "low": 67383.8,
                "close": 67706.3,
                "count": 48,
                "sources": ["coingecko", "coinpaprika"],
            }
        ],
        "pagination": _PAGINATION | {"page": None, "pages": None, "total": None},
    },
    "HistoryPage": {
        "data": [
            {
                "time": "2024-06-01T00:00:00.000000Z",
                "open": 67491.4,
                "high": 67839.1,
                "low": 67383.8,
                "close": 67706.3,
                "count": 24,
            }
        ],
        "pagination": _PAGINATION | {"page": None, "pages": None, "total": None},
    },
    "RunReport": _RUN,
    "RunsPage": {"data": [_RUN], "pagination": _PAGINATION},
    "RejectsPage": {
        "data": [
            {
                "id": 7,
                "source": "csv",
                "reason": "not a number: 'abc'",
                "setting": None,
                "field": "price_usd",
                "location": "dump.csv.gz",
                "line": 1204,
                "raw": "btc,Bitcoin,abc",
            }
        ],
        "pagination": _PAGINATION,
    },
    "Stats": {
        "status": "idle",
        "last_run": _RUN,
        "totals": {
            "records": 15000,
            "by_source": {"coinpaprika": 2500, "coingecko": 12000, "csv": 500},
            "runs": 42,
            "last_success_at": "2024-06-01T12:00:09.5Z",
            "last_failure_at": None,
        },
        "schedule": {"interval_s": 3600.0, "next_run_at": "2024-06-01T13:00:00Z"},
        "budget": {
            "coinpaprika": {
                "month": "2024-06",
                "calls": 12,
                "limit": 20000,
                "remaining": 19988,
                "pages": None,
                "pages_every_run": None,
                "pages_in_rotation": None,
                "rotation_runs": None,
                "covered_by": None,
                "age_s": None,
                "promised_age_s": None,
            },
            "coingecko": {
                "month": "2024-06",
                "calls": 228,
                "limit": 10000,
                "remaining": 9772,
                "pages": 72,
                "pages_every_run": 3,
                "pages_in_rotation": 69,
                "rotation_runs": 7,
                "covered_by": "2024-06-01T20:00:00Z",
                "age_s": 25291.0,
                "promised_age_s": 61200.0,
            },
        },
        "drift": {"coinpaprika": [], "coingecko": [_DRIFT]},
    },
    "Health": {
        "status": "ok",
        "database": {"status": "ok", "latency_ms": 0.8, "error": None},
        "sources": {
            "coingecko": {
                "status": "succeeded",
                "last_success_at": "2024-06-01T12:00:09.4Z",
                "age_s": 120.5,
                "expected_age_s": 7500.0,
                "stale": False,
                "error": None,
                "reasons": [],
            }
        },
        "assets": {
            "total": 14210,
            "diverging": 12,
            "diverging_first": ["abc-example"],
            "candidates": 310,
            "conflicts": 1,
            "problem": None,
        },
    },
    "Comparison": {
        "a": _RUN,
        "b": {**_RUN, "id": 43},
        "difference": _DIFFERENCE,
        "only_a": [],
        "only_b": [],
        "sources": [
            {
                "source": "coingecko",
                "status_a": "succeeded",
                "status_b": "succeeded",
                "difference": _DIFFERENCE,
                "drift_begun": [],
                "drift_over": [],
                "anomalies_begun": [],
                "anomalies_over": [],
            }
        ],
    },
    "Alive": {"status": "ok"},
    "Readiness": {"status": "ok", "reason": None},
    "TableSizes": {
        "tables": [{"name": "unified_data", "rows": 15000, "bytes": 7340032, "estimated": False}],
    },
    "AssetsPage": {"data": [_ASSET], "pagination": _PAGINATION},
    "AssetWithQuotes": {
        **_ASSET,
        "quotes": [
            {
                "source": "coingecko",
                "source_id": "bitcoin",
                "price_usd": 64210.5,
                "observed_at": "2024-06-01T12:00:00.000000Z",
                "age_s": 31.5,
                "counted": True,
                "excluded_because": None,
                "link": {"method": "names", "score": 0.98, "evidence": _EVIDENCE},
            }
        ],
    },
    "CandidatesPage": {
        "data": [
            {
                "kind": "candidate",
                "source": "coingecko",
                "source_id": "bitcoin-2",
                "symbol": "btc",
                "name": "Bitcoin",
                "asset": "btc-bitcoin",
                "score": 0.2,
                "reason": "another id of this source is linked to this asset",
                "evidence": _EVIDENCE,
                "found_at": "2024-06-01T12:00:31.25Z",
            }
        ],
        "pagination": _PAGINATION,
    },
    "ArchivesPage": {
        "data": [
            {
                "file": "kraken/XBTUSD_1440.csv",
                "state": "loaded",
                "loaded_at": "2024-06-01T12:00:31.25Z",
                "rows": 3871,
                "coin": "btc",
                "asset": "btc-bitcoin",
                "coins": 1,
                "quoted_in": ["USD"],
                "first_observed_at": "2013-10-06T23:59:59Z",
                "last_observed_at": "2024-05-31T23:59:59Z",
                "problem": None,
                "setting": None,
                "rejected_in": None,
            }
        ],
        "pagination": _PAGINATION,
        "totals": {"loaded": 1, "incomplete": 0, "rejected": 0, "forgotten": 0, "problems": 0, "unlisted": 0},
    },
    "RunStarted": {"id": 43, "status": "running"},
}
