"""Runs the simulator in its own process: `python -m kasparro.simulator`."""

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import msgspec

from kasparro.simulator import Account, Simulator
from kasparro.simulator.coins import MOST_COINS, Api


class Moment(click.ParamType[datetime]):
    name = "moment"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an ISO 8601 time.", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class Replay(click.ParamType[tuple[Api, Path]]):
    name = "api=file"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Api, Path]:
        name, _, path = str(value).partition("=")
        for api in get_args(Api):
            if name == api and Path(path).is_file():
                return api, Path(path)
        raise click.BadParameter(f"{value!r} must be API=FILE with an existing file.", ctx, param)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0: a free port.")
@click.option("--seed", default=1, show_default=True, help="Seed of the simulated market.")
@click.option(
    "--coins", default=2_500, show_default=True, type=click.IntRange(1, MOST_COINS), help="Number of coins."
)
@click.option("--tick", default=60.0, show_default=True, help="Seconds between changes of the market.")
@click.option("--manual", is_flag=True, help="Stop the clock; POST /control/advance moves it.")
@click.option("--base", type=Moment(), help="Start time of the market, ISO 8601.  [default: now]")
@click.option("--coinpaprika-key", help="The key that CoinPaprika accepts.")
@click.option("--coinpaprika-per-minute", type=click.IntRange(0), help="CoinPaprika calls per minute.")
@click.option("--coinpaprika-per-month", type=click.IntRange(0), help="CoinPaprika calls per month.")
@click.option("--coingecko-key", help="The key that CoinGecko accepts.")
@click.option("--coingecko-pro", is_flag=True, help="The CoinGecko key is a pro key, and required.")
@click.option("--coingecko-per-minute", type=click.IntRange(0), help="CoinGecko calls per minute.")
@click.option("--coingecko-per-month", type=click.IntRange(0), help="CoinGecko calls per month.")
@click.option("--record-served", is_flag=True, help="Record responses for GET /control/served.")
@click.option(
    "--replay",
    type=Replay(),
    multiple=True,
    help="Serve this file in place of the market: the first file of an API is its page 1, the second its "
    "page 2. Later pages are empty.",
)
def main(
    *,
    host: str,
    port: int,
    seed: int,
    coins: int,
    tick: float,
    manual: bool,
    base: datetime | None,
    coinpaprika_key: str | None,
    coinpaprika_per_minute: int | None,
    coinpaprika_per_month: int | None,
    coingecko_key: str | None,
    coingecko_pro: bool,
    coingecko_per_minute: int | None,
    coingecko_per_month: int | None,
    record_served: bool,
    replay: tuple[tuple[Api, Path], ...],
) -> None:
    """Simulate CoinPaprika and CoinGecko on this machine until interrupted.

    Once both are available, print their base URLs on stdout as one line of JSON.
    """
    simulator = Simulator(
        seed=seed,
        coins=coins,
        base=base,
        tick=tick,
        manual=manual,
        host=host,
        port=port,
        coinpaprika=Account(
            key=coinpaprika_key, per_minute=coinpaprika_per_minute, per_month=coinpaprika_per_month
        ),
        coingecko=Account(
            key=coingecko_key,
            pro=coingecko_pro,
            per_minute=coingecko_per_minute,
            per_month=coingecko_per_month,
        ),
        record_served=record_served,
    )
    for api in get_args(Api):
        if bodies := [path.read_bytes() for name, path in replay if name == api]:
            simulator.replay(api, bodies)
    asyncio.run(_run(simulator))


async def _run(simulator: Simulator) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with simulator:
        addresses = {
            "coinpaprika": simulator.coinpaprika_url,
            "coingecko": simulator.coingecko_url,
            "control": simulator.url + "/control",
        }
        click.echo(msgspec.json.encode(addresses))
        await stop.wait()


if __name__ == "__main__":
    main()
