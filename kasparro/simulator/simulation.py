"""The state of both simulated upstreams, and the operations that change it."""

from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.routing import Mount

from kasparro.simulator.calls import Calls
from kasparro.simulator.clock import Clock
from kasparro.simulator.coingecko import CoinGecko
from kasparro.simulator.coinpaprika import CoinPaprika
from kasparro.simulator.coins import Api
from kasparro.simulator.endpoint import Endpoint
from kasparro.simulator.events import AnyEvent
from kasparro.simulator.faults import ActiveFault, AnyFault, Faults
from kasparro.simulator.market import Market, TrueCoin
from kasparro.simulator.payloads import Payloads
from kasparro.simulator.quota import Quota
from kasparro.simulator.served import ServedResponses
from kasparro.simulator.upstream import Account


class Simulation:
    """Both market APIs as ASGI applications.

    The same seed, number of coins, base time and tick give the same market. With `manual`, time moves only
    by `advance`; otherwise a tick lasts `tick` seconds. With `record_served`, `served` has the responses
    that clients received completely.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        coins: int = 2_500,
        base: datetime | None = None,
        tick: float = 60.0,
        manual: bool = False,
        coinpaprika: Account | None = None,
        coingecko: Account | None = None,
        record_served: bool = False,
    ) -> None:
        base = datetime.now(UTC).replace(microsecond=0) if base is None else base.astimezone(UTC)
        self.clock = Clock(base, round(tick * 1000), manual=manual)
        self.market = Market(self.clock, seed=seed, coins=coins)
        self.calls = Calls()
        self.served = ServedResponses(record=record_served)
        self._faults = Faults(seed)
        self._payloads = Payloads()
        upstreams = (
            CoinPaprika(self.market, coinpaprika or Account()),
            CoinGecko(self.market, coingecko or Account()),
        )
        self._quotas = [Quota(upstream.account, self.clock) for upstream in upstreams]
        self.mounts = [
            Mount(
                upstream.base,
                app=Endpoint(
                    upstream,
                    clock=self.clock,
                    quota=quota,
                    faults=self._faults,
                    payloads=self._payloads,
                    calls=self.calls,
                    served=self.served,
                ),
            )
            for upstream, quota in zip(upstreams, self._quotas, strict=True)
        ]
        """The applications of both APIs."""

    @property
    def faults(self) -> list[ActiveFault]:
        """The active faults."""
        return self._faults.active()

    def add_fault(self, fault: AnyFault) -> ActiveFault:
        return self._faults.add(fault)

    def remove_fault(self, fault_id: int) -> bool:
        """Remove a fault; False if it was not active."""
        return self._faults.remove(fault_id)

    def clear_faults(self) -> None:
        self._faults.clear()

    def trigger(self, event: AnyEvent) -> None:
        """Let an event happen now. Raises ImpossibleEvent."""
        self.market.trigger(event)

    def true_coins(self) -> list[TrueCoin]:
        """Which ids are the same coin, for tests of what others conclude."""
        return self.market.true_coins()

    def put_payload(self, api: Api, body: bytes, *, page: int = 1) -> None:
        """Serve these bytes as that page; other pages do not change."""
        self._payloads.put(api, page, body)

    def replay(self, api: Api, bodies: Sequence[bytes]) -> None:
        """Serve these bodies as the API's pages in order, and empty pages after them."""
        self._payloads.replay(api, bodies)

    def clear_payloads(self) -> None:
        """Serve the market again."""
        self._payloads.clear()

    def advance(self, ticks: int = 1) -> None:
        """Move the clock, and with it the market and the quotas."""
        self.clock.advance(ticks)

    def reset(self) -> None:
        """Return to the start: no faults, events, payloads or calls, empty quotas, and the first tick."""
        self._faults.clear()
        self._payloads.clear()
        self.calls.clear()
        self.served.clear()
        self.clock.reset()
        self.market.reset()
        for quota in self._quotas:
            quota.reset()
