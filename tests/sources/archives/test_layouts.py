"""Layouts of well-known archives, with figures of our own: loaded exactly, or rejected with the reason."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.support.archives import NULL, Read, table

BEGIN = datetime(2021, 1, 1, tzinfo=UTC)


async def test_coinmarketcap_history_of_all_coins(load: Read) -> None:
    content = table(
        "slug,symbol,name,date,ranknow,open,high,low,close,volume,market,close_ratio,spread",
        "bitcoin,BTC,Bitcoin,2013-04-28,1,135.3,135.98,132.1,134.21,0,1488566728,0.5438,3.88",
        "bitcoin,BTC,Bitcoin,2013-04-29,1,134.44,147.49,134,144.54,0,1603768865,0.7813,13.49",
        "ripple,XRP,XRP,2013-08-04,3,0.0058,0.0059,0.0056,0.0058,12,45983577,0.7,0",
    )
    outcome = await load(content, "crypto-markets.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "market_cap_usd", "rank") == [
        ("bitcoin", "2013-04-28 23:59:59", "134.21", "1488566728", NULL),
        ("bitcoin", "2013-04-29 23:59:59", "144.54", "1603768865", NULL),
        ("ripple", "2013-08-04 23:59:59", "0.0058", "45983577", NULL),
    ]


async def test_column_of_row_numbers_is_ignored(load: Read) -> None:
    content = table(
        ",Date,Symbol,Open,High,Low,Close,Volume,Market Cap",
        "0,2015-11-12,$$$,0.000013,0.000017,0.000013,0.000017,142.0,",
        "1,2015-11-13,BTC,330.1,340,320,331.5,1,",
    )
    outcome = await load(content, "all_currencies.csv")
    assert outcome.values("symbol", "observed_at", "price_usd", "volume_24h_usd") == [
        ("BTC", "2015-11-13 23:59:59", "331.5", "1")
    ]
    assert outcome.rejects[0].field == "id"


async def test_minute_candles_with_nan_rows(load: Read) -> None:
    rows = [f"{1325317920 + 60 * n},4.39,4.39,4.39,4.{n + 10},0.4555,2,4.39" for n in range(6)]
    rows[2] = f"{1325317920 + 120},NaN,NaN,NaN,NaN,NaN,NaN,NaN"
    content = table("Timestamp,Open,High,Low,Close,Volume_(BTC),Volume_(Currency),Weighted_Price", *rows)
    outcome = await load(content, "bitstampUSD_1-min_data_2012-01-01_to_2021-03-31.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd")[:3] == [
        ("btc", "2011-12-31 07:52:59", "4.1", NULL),
        ("btc", "2011-12-31 07:53:59", "4.11", NULL),
        ("btc", "2011-12-31 07:55:59", "4.13", NULL),
    ]
    assert [(reject.line, reject.reason) for reject in outcome.rejects] == [(4, "no close: 'NaN'")]


@pytest.mark.parametrize(
    ("above", "header", "row"),
    [
        (
            "https://www.CryptoDataDownload.com",
            "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD",
            "{unix},{day} 00:00:00,BTC/USD,1,2,0.5,{close},7,70.5",
        ),
        (
            "# Source: somewhere, 2021",
            "Unix Timestamp,Date,Symbol,Open,High,Low,Close,Volume USD",
            "{unix}000,{day} 00:00:00,BTCUSD,1,2,0.5,{close},70.5",
        ),
        (
            "https://www.CryptoDataDownload.com",
            "Date,Symbol,Open,High,Low,Close,Volume BTC,Volume USD",
            "{day} 12-AM,BTCUSD,1,2,0.5,{close},7,70.5",
        ),
    ],
)
async def test_candles_below_a_line_about_their_source(load: Read, above: str, header: str, row: str) -> None:
    rows = []
    for n in range(4):
        at = BEGIN + timedelta(days=n)
        rows.append(row.format(unix=int(at.timestamp()), day=f"{at:%Y-%m-%d}", close=n + 10))
    rows[1] = rows[1].replace("11", "eleven", 1) if ",11," in rows[1] else rows[1]
    outcome = await load(table(above, header, *rows), "Gemini_BTCUSD_d.csv")
    assert outcome.values("source_id", "symbol", "observed_at", "price_usd", "volume_24h_usd")[0] == (
        "btc",
        "BTC",
        "2021-01-01 23:59:59",
        "10",
        "70.5",
    )
    assert [reject.line for reject in outcome.rejects] == [4]


async def test_prices_in_tether_are_not_dollars(load: Read) -> None:
    content = table(
        "open_time,open,high,low,close,volume,close_time,quote_volume,count,ignore",
        "1609459200000,28923.63,28961.66,28913.12,28961.66,27.45,1609459259999,794382.04,1292,0",
        "1609459260000,28961.67,29017.5,28961.01,29009.91,58.47,1609459319999,1695802.9,1651,0",
    )
    outcome = await load(content, "BTCUSDT-1m-2021-01.csv")
    assert "in USDT, not USD" in outcome.problem
    assert "BTCUSDT-1m-2021-01.csv.toml next to it can say: pegged_as_usd = true" in outcome.problem
    outcome = await load(table("Date,Symbol,Close,High,Low,Open", "2021-01-01,BTC/USDT,1,1,1,1"), "x.csv")
    assert "in USDT, not USD" in outcome.problem


async def test_candles_of_an_unknown_layout_without_a_header_are_rejected(load: Read) -> None:
    content = table(
        "1381017600,122.0,122.5,121.0,122.0,0.1,1,7,8", "1381104000,123.6,124,123,123.61,0.1,1,7,8"
    )
    outcome = await load(content, "XBTUSD_1440.csv")
    assert "it has no header" in outcome.problem
    assert 'header = ["timestamp", "open", "high", "low", "close", "column 6",' in outcome.problem


async def test_yahoo_with_null_rows(load: Read) -> None:
    content = table(
        "Date,Open,High,Low,Close,Adj Close,Volume",
        "2020-04-16,6640.45,7134.45,6555.5,7116.80,7116.80,46783242377",
        "2020-04-17,null,null,null,null,null,null",
        "2020-04-18,7092.29,7269.96,7089.25,7257.67,7257.67,32447188386",
    )
    outcome = await load(content, "BTC-USD.csv")
    assert outcome.values("source_id", "price_usd", "volume_24h_usd") == [
        ("btc", "7116.8", "46783242377"),
        ("btc", "7257.67", "32447188386"),
    ]
    assert outcome.rejects[0].reason == "no close: 'null'"


async def test_investing_with_k_and_m_suffixes(load: Read) -> None:
    content = table(
        '"Date","Price","Open","High","Low","Vol.","Change %"',
        '"12/31/2021","46,219.5","47,120.8","48,553.9","45,693.6","58.18K","-1.91%"',
        '"12/30/2021","47,120.9","46,470.7","47,901.4","46,003.0","1.2M","1.40%"',
    )
    outcome = await load(content, "Bitcoin Historical Data - Investing.com.csv")
    assert outcome.values("source_id", "observed_at", "price_usd", "volume_24h_usd") == [
        ("bitcoin", "2021-12-31 23:59:59", "46219.5", NULL),
        ("bitcoin", "2021-12-30 23:59:59", "47120.9", NULL),
    ]


async def test_investing_in_german_needs_a_currency(load: Read) -> None:
    content = table(
        '"Datum","Zuletzt","Eröffn.","Hoch","Tief","Vol.","+/- %"',
        '"31.12.2021","46.219,5","47.120,8","48.553,9","45.693,6","58,18K","-1,91%"',
        '"30.12.2021","47.120,9","46.470,7","47.901,4","46.003,0","1,2M","1,40%"',
    )
    outcome = await load(content, "Bitcoin Historische Daten.csv")
    assert "its currency is unknown" in outcome.problem
    outcome = await load(content, "btc-usd.csv")
    assert outcome.values("source_id", "observed_at", "price_usd") == [
        ("btc", "2021-12-31 23:59:59", "46219.5"),
        ("btc", "2021-12-30 23:59:59", "47120.9"),
    ]


async def test_coingecko_and_coinpaprika_exports(load: Read) -> None:
    content = table(
        "snapped_at,price,market_cap,total_volume",
        "2021-05-20 00:00:00 UTC,0.1371174932423559,,2724.527382210886",
    )
    assert (await load(content, "gomining-usd-max.csv")).values(
        "source_id", "observed_at", "price_usd", "market_cap_usd"
    ) == [("gomining", "2021-05-20 00:00:00", "0.1371174932423559", NULL)]
    content = table('"DateTime","Price"', '"2024-01-02 00:00:00",44168.68118687473')
    assert (await load(content, "CoinPaprika_BTC_price_2024_USD.csv")).values("source_id", "price_usd") == [
        ("btc", "44168.68118687473")
    ]


async def test_flattened_api_responses(load: Read) -> None:
    content = table(
        "id,name,symbol,slug,cmc_rank,last_updated,quote.EUR.price,quote.EUR.percent_change_24h,"
        "quote.USD.price,quote.USD.volume_24h,quote.USD.percent_change_24h,quote.USD.market_cap",
        "1,Bitcoin,BTC,bitcoin,1,2021-03-24T10:00:00.000Z,45000,9.9,54000.5,1e9,1.5,1000000000000",
        "1027,Ethereum,ETH,ethereum,2,2021-03-24T10:00:00.000Z,1400,8.8,1700.25,5e8,-2.5,200000000000",
    )
    outcome = await load(content, "listings.csv")
    assert outcome.values(
        "source_id", "rank", "price_usd", "volume_24h_usd", "percent_change_24h", "market_cap_usd"
    ) == [
        ("bitcoin", "1", "54000.5", "1000000000", "1.5", "1000000000000"),
        ("ethereum", "2", "1700.25", "500000000", "-2.5", "200000000000"),
    ]


async def test_coinmarketcap_export(load: Read) -> None:
    content = table(
        "timeOpen;timeClose;timeHigh;timeLow;name;open;high;low;close;volume;marketCap;timestamp",
        '"2024-11-23T00:00:00.000Z";"2024-11-23T23:59:59.999Z";"2024-11-23T01:00:00.000Z";'
        '"2024-11-23T22:00:00.000Z";"2781";98997.6;98999.5;97200.1;97777.28;44414644677.4;1934733530000.1;'
        '"2024-11-23T23:59:59.999Z"',
    )
    outcome = await load(content, "Bitcoin_23_11_2024-24_11_2024_historical_data_coinmarketcap.csv")
    assert outcome.values("source_id", "name", "observed_at", "price_usd", "market_cap_usd") == [
        ("bitcoin", NULL, "2024-11-23 23:59:59.999000", "97777.28", "1934733530000.1")
    ]


async def test_currency_column_that_holds_coins(load: Read) -> None:
    content = table(
        "Currency,Date,Open,High,Low,Close,Volume,Market Cap",
        'tezos,"Dec 04, 2019",1.29,1.32,1.25,1.25,"46,048,752","824,588,509"',
        'binance-coin,"Dec 04, 2019",15.35,15.97,14.85,15.29,"215,053,000","2,378,000,000"',
    )
    assert (await load(content, "consolidated_coin_data.csv")).values("source_id", "price_usd") == [
        ("tezos", "1.25"),
        ("binance-coin", "15.29"),
    ]
    content = table(
        "Currency,Date,Closing Price (USD),24h Open (USD),24h High (USD),24h Low (USD)",
        "BTC,2013-10-01,123.65499,124.30466,124.75166,122.56349",
        "BTC,2013-10-02,125.455,123.65499,125.7585,123.63383",
    )
    assert (await load(content, "BTC_USD_2013-10-01_2021-03-24-CoinDesk.csv")).values(
        "source_id", "price_usd"
    ) == [("btc", "123.65499"), ("btc", "125.455")]


async def test_community_metrics(load: Read) -> None:
    content = table(
        "time,AdrActCnt,CapMrktCurUSD,PriceBTC,PriceUSD,SplyCur",
        "2010-07-17,1,,,,3403200",
        "2010-07-18,860,291000.5,1,0.08584,3436900",
        "2010-07-19,929,,1,0.0808,3447300",
    )
    outcome = await load(content, "btc.csv")
    assert outcome.values("source_id", "price_usd", "market_cap_usd") == [
        ("btc", "0.08584", "291000.5"),
        ("btc", "0.0808", NULL),
    ]
    assert len(outcome.rejects) == 1


@pytest.mark.parametrize("name", ["btcusd.csv", "BTCUSD.csv", "btc_usd_1m.csv", "coinbaseUSD_btc.csv"])
async def test_pair_in_file_name(load: Read, name: str) -> None:
    rows = [f"{1609459200000 + 60_000 * n},1,1.5,2,1,3" for n in range(3)]
    outcome = await load(table("time,open,close,high,low,volume", *rows), name)
    assert outcome.values("source_id", "observed_at", "price_usd")[0] == ("btc", "2021-01-01 00:00:59", "1.5")


async def test_spreadsheet_with_tabs_and_utf_16(load: Read) -> None:
    content = table(
        "Datum\tKurs (USD)\tName",
        "31.12.2021\t46.219,50\tBitcoin",
        "01.01.2022\t47.000,10\tÄther",
        end="\r\n",
    )
    outcome = await load(content.encode("utf-16"), "Mappe1.txt")
    assert outcome.values("name", "observed_at", "price_usd") == [
        ("Bitcoin", "2021-12-31 23:59:59", "46219.5"),
        ("Äther", "2022-01-01 23:59:59", "47000.1"),
    ]


async def test_screener_needs_a_day_in_its_name(load: Read) -> None:
    content = table(
        '"name","symbol","priceUsd","currentMarketcap"', '"Bitcoin","BTC","46219.5","874000000000"'
    )
    assert "gives the time" in (await load(content, "messari_screener.csv")).problem
    assert (await load(content, "messari_2021-12-31.csv")).values("observed_at", "price_usd") == [
        ("2021-12-31 23:59:59", "46219.5")
    ]


async def test_coins_that_are_bare_numbers_are_not_mixed(load: Read) -> None:
    rows = [f"{1514764860 + 60 * (n // 2)},{n % 2},1,2,1,{n + 1},3" for n in range(8)]
    outcome = await load(table("timestamp,Asset_ID,Open,High,Low,Close,Volume", *rows), "part-usd.csv")
    assert "bare numbers only" in outcome.problem


async def test_coins_in_an_unknown_column_are_not_mixed(load: Read) -> None:
    rows = [f"2021-01-0{n // 3 + 1},thing-{n % 3},{n}.5" for n in range(9)]
    outcome = await load(table("date,thing,price_usd", *rows), "quotes-mine.csv")
    assert "several coins" in outcome.problem
    assert 'columns."thing" = "symbol"' in outcome.problem


async def test_chart_of_an_api_and_headers_in_portuguese(load: Read) -> None:
    content = table("timestamp,prices,market_caps,total_volumes", "1609459200000,29001.72,5e11,4e10")
    assert (await load(content, "bitcoin-usd.csv")).values(
        "price_usd", "market_cap_usd", "volume_24h_usd"
    ) == [("29001.72", "500000000000", "40000000000")]
    content = table('"Data","Último","Abertura","Máxima","Mínima"', '"31.12.2021","1,5","1","2","1"')
    assert (await load(content, "btc-usd.csv")).values("observed_at", "price_usd") == [
        ("2021-12-31 23:59:59", "1.5")
    ]


@pytest.mark.parametrize(
    ("header", "value"), [("%1h", "1.5"), ("1h %", "1.5"), ("percent_change_1h", "1.5"), ("1h%", "1.5")]
)
async def test_percent_columns_of_scraped_lists(load: Read, header: str, value: str) -> None:
    content = table(
        f"#,Name,Symbol,Price,{header},Market Cap,Volume(24h),Circulating Supply,date",
        '1,Bitcoin,BTC,"$46,219.50",1.5%,"$874,000,000,000","$30,000,000,000","18,915,000 BTC",2021-12-31',
    )
    (row,) = (await load(content, "top.csv")).rows
    assert (row["percent_change_1h"], row["price_usd"]) == (value, "46219.5")
    assert (row["volume_24h_usd"], row["circulating_supply"]) == ("30000000000", "18915000")


async def test_symbol_that_looks_like_a_pair(load: Read) -> None:
    """In a file with ids it is the coin's symbol; without them it is a pair."""
    content = table(
        "id,symbol,name,current_price,market_cap,total_volume,last_updated",
        "bitcoin,BTC,Bitcoin,92551,1,1,2025-12-03T18:57:01Z",
        "binance-bridged-usdt-bnb-smart-chain,BSC-USD,Binance Bridged USDT,1.0,1,1,2025-12-03T18:57:01Z",
    )
    assert (await load(content, "top-usd.csv")).values("symbol") == [("BTC",), ("BSC-USD",)]
    content = table("symbol,name,price,date", "BTC-USD,Bitcoin,1,2025-12-03", "ETH-USD,Ethereum,1,2025-12-03")
    assert (await load(content, "prices.csv")).values("symbol") == [("BTC",), ("ETH",)]
