"""The commands that serve the API."""

import click

from kasparro.cli.common import exit_on_error, load_settings
from kasparro.cli.terminal import out
from kasparro.importing import importing

_host = click.option("--host", help="Listen address (KASPARRO_HOST).")
_port = click.option("--port", type=click.IntRange(0, 65_535), help="Listen port (PORT).")


@click.command()
@_host
@_port
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Number of server processes."
)
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve the API. Run the sources at the start and then once per interval."""
    with importing():
        from kasparro.web import server  # noqa: PLC0415 - `kasparro --help` does without it

    settings = load_settings(host, port)
    exit_on_error(lambda: server.serve(settings, workers=workers))


@click.command()
@_host
@_port
@click.option(
    "--seed",
    type=int,
    default=1,
    show_default=True,
    help="Seed of the invented market: same seed, same market.",
)
def demo(host: str | None, port: int | None, seed: int) -> None:
    """Serve with simulated upstreams: no network, no keys.

    The prices are invented. Therefore the demo uses its own embedded database. If DATABASE_URL is set, it
    must be an empty database or one of an earlier demo.
    """
    with importing():
        from kasparro.web import server  # noqa: PLC0415 - `kasparro --help` does without it

    settings = load_settings(host, port)

    def announce(url: str) -> None:
        # A server that listens on all addresses answers on this one, too.
        local = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        out.print(
            f"open {local}/ in a browser; it answers in a few seconds, and Ctrl+C ends the demo",
            soft_wrap=True,
        )

    exit_on_error(lambda: server.serve(settings, demo_seed=seed, announce=announce))
