"""Coins of a simulated market that are easily taken for another coin."""

import msgspec


class Lookalike(msgspec.Struct, frozen=True, kw_only=True):
    """A coin that resembles another one, at the price `price`, or at that of the coin whose form it is."""

    name: str
    symbol: str
    chains: tuple[str, ...] = ()
    price: str | None = None
    form_of: str | None = None
    """The symbol of the well-known coin of which it is a wrapped or bridged form."""
    cap: int
    """Its market cap in dollars."""
    coingecko_id: str | None = None
    """If it is not the slug of the name."""
    in_coinpaprika: bool = True


LOOKALIKES = (
    # In a market of 2,500 coins, this cap gives rank 900.
    Lookalike(
        name="Bitcoin",
        symbol="BTC",
        chains=("solana",),
        price="0.018734",
        cap=1_450_000,
        in_coinpaprika=False,
    ),
    # CoinGecko lists each form as a coin of its own. CoinPaprika gives their contracts for the coin itself.
    Lookalike(
        name="WETH",
        symbol="WETH",
        chains=("ethereum",),
        form_of="ETH",
        cap=11_300_000_000,
        in_coinpaprika=False,
    ),
    Lookalike(
        name="Arbitrum Bridged WETH (Arbitrum One)",
        symbol="WETH",
        chains=("arbitrum",),
        form_of="ETH",
        cap=820_000_000,
        in_coinpaprika=False,
    ),
    Lookalike(
        name="Wrapped AVAX",
        symbol="WAVAX",
        chains=("avalanche",),
        form_of="AVAX",
        cap=310_000_000,
        in_coinpaprika=False,
    ),
    Lookalike(
        name="Binance-Peg Avalanche",
        symbol="AVAX",
        chains=("bsc",),
        form_of="AVAX",
        cap=96_000_000,
        in_coinpaprika=False,
    ),
    Lookalike(
        name="Polygon Bridged USDC (Polygon PoS)",
        symbol="USDC.E",
        chains=("polygon",),
        form_of="USDC",
        cap=540_000_000,
        coingecko_id="bridged-usdc-polygon-pos-bridge",
        in_coinpaprika=False,
    ),
    Lookalike(
        name="Wrapped SOL",
        symbol="SOL",
        chains=("solana",),
        form_of="SOL",
        cap=2_100_000_000,
        coingecko_id="wrapped-solana",
        in_coinpaprika=False,
    ),
    # Two coins of one name and symbol, two of one name, and two of one symbol.
    Lookalike(name="Portal", symbol="PORTAL", chains=("ethereum",), price="0.084156", cap=61_000_000),
    Lookalike(name="Portal", symbol="PORTAL", chains=("bsc",), price="1.97302", cap=2_300_000),
    Lookalike(name="Nova", symbol="NOVA", price="3.40281", cap=48_000_000),
    Lookalike(name="Nova", symbol="NVA", chains=("ethereum",), price="0.00061927", cap=5_200_000),
    Lookalike(name="Merit Network", symbol="MRT", price="0.71533", cap=33_000_000),
    Lookalike(name="Merlin Trade", symbol="MRT", chains=("polygon",), price="0.0158204", cap=9_400_000),
)
