"""TLS to the database by its URL: the server's certificate is checked, and the client shows its own."""

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trustme

from kasparro.embedded.programs import Programs, _machine_folders, _major
from kasparro.errors import DatabaseUnavailable, KasparroError
from kasparro.settings import load
from kasparro.store.pool import Database
from tests.support.commands import run_command
from tests.support.postgres import OWNER, USER, Server, servers, unprivileged_account

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="these servers are for Linux"),
]

# Only the client that shows a certificate with the name of the role gets in.
ACCESS = f"""
host all {OWNER} 127.0.0.1/32 trust
hostssl all {USER} 127.0.0.1/32 cert
"""


def programs_with_tls() -> Programs:
    """The PostgreSQL of the machine. The embedded one is built without TLS."""
    for folder in _machine_folders():
        if (major := _major(folder)) is not None and major >= 15:
            return Programs(folder, major)
    pytest.skip("PostgreSQL 15 or newer (Debian: postgresql) is not installed")


def write_certificates(folder: Path) -> None:
    """Write the files of two authorities, `ca` and `stranger`."""
    for name in ("ca", "stranger"):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / f"{name}.pem"))
        for owner in ("server", USER, "somebody"):
            identity = "127.0.0.1" if owner == "server" else f"{owner}.example"
            certificate = authority.issue_cert(identity, common_name=owner)
            certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}-{owner}.pem"))
            certificate.private_key_pem.write_to_path(str(folder / f"{name}-{owner}.key"))
    for key in folder.glob("*.key"):
        key.chmod(0o600)
    if account := unprivileged_account():
        os.chown(folder / "ca-server.key", account["user"], account["group"])


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A server that accepts the role only over TLS, with a certificate."""
    async with servers(programs_with_tls()) as installation:
        server = await installation.primary()
        await server.end()
        folder = installation.folder
        write_certificates(folder)
        (server.folder / "pg_hba.conf").write_text(ACCESS)
        with (server.folder / "postgresql.conf").open("a") as file:
            file.write(
                f"ssl = on\nssl_ca_file = '{folder}/ca.pem'\n"
                f"ssl_cert_file = '{folder}/ca-server.pem'\nssl_key_file = '{folder}/ca-server.key'\n"
            )
        await server.start()
        yield server


def url(server: Server, mode: str, **files: str) -> str:
    """The URL with this mode and these files, after the check of the settings."""
    parameters = {"sslmode": mode} | {name: str(server.folder.parent / file) for name, file in files.items()}
    settings = load({"DATABASE_URL": f"{server.url()}?{urlencode(parameters)}"}, {})
    assert settings.database_url is not None
    return settings.database_url.reveal()


OWN = {"sslcert": "ca-kasparro.pem", "sslkey": "ca-kasparro.key"}


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_server_and_client_show_their_certificates(server: Server, mode: str) -> None:
    async with Database(url(server, mode, sslrootcert="ca.pem", **OWN)) as database:
        for access in (database.writing, database.reading):
            async with access() as connection:
                row = await connection.fetchrow(
                    "SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
                )
                assert row is not None
                assert row["ssl"]
                assert "CN=kasparro" in row["client_dn"]


@pytest.mark.parametrize(
    ("mode", "files", "reason"),
    [
        ("verify-full", {"sslrootcert": "stranger.pem", **OWN}, "certificate verify failed"),
        ("verify-ca", {"sslrootcert": "stranger.pem", **OWN}, "certificate verify failed"),
        ("verify-full", {"sslrootcert": "ca.pem"}, "certificate"),
        (
            "verify-full",
            {"sslrootcert": "ca.pem", "sslcert": "ca-somebody.pem", "sslkey": "ca-somebody.key"},
            "certificate authentication failed",
        ),
        ("disable", {}, "no encryption"),
    ],
)
async def test_wrong_certificates_are_one_clear_line(
    server: Server, mode: str, files: dict[str, str], reason: str
) -> None:
    async with Database(url(server, mode, **files)) as database:
        with pytest.raises(DatabaseUnavailable, match=reason) as failure:
            async with database.writing():
                pass
    assert "\n" not in str(failure.value)


async def test_name_of_the_server_is_checked(server: Server) -> None:
    """`verify-full` compares the host of the URL with the certificate; `verify-ca` does not."""
    for mode in ("verify-ca", "verify-full"):
        by_name = url(server, mode, sslrootcert="ca.pem", **OWN).replace("127.0.0.1", "localhost")
        async with Database(by_name) as database:
            try:
                async with database.writing():
                    outcome = "connected"
            except KasparroError as error:
                outcome = str(error)
        assert ("mismatch" in outcome) == (mode == "verify-full"), outcome


async def test_commands_use_the_certificates(server: Server) -> None:
    given = url(server, "verify-full", sslrootcert="ca.pem", **OWN)
    code, out, err = await run_command("migrate", DATABASE_URL=given)
    assert (code, err.count("Traceback")) == (0, 0), err
    assert "0001_initial" in out
