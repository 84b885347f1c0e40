"""nginx and Varnish with the configurations of docs/deploy, in front of a service of the tests."""

import asyncio
import os
import re
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import stamina

from tests.support.documents import ROOT
from tests.support.postgres import free_port

NGINX = ROOT / "docs" / "deploy" / "nginx" / "kasparro.conf"
VARNISH = ROOT / "docs" / "deploy" / "varnish" / "kasparro.vcl"
# Debian installs them where only root's path leads.
_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
PROGRAMS = {"nginx": shutil.which("nginx", path=_PATH), "varnish": shutil.which("varnishd", path=_PATH)}
_PACKAGES = {"nginx": "nginx-light", "varnish": "varnish"}

every_cache = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                program is None, reason=f"{name} (Debian: {_PACKAGES[name]}) is not installed"
            ),
        )
        for name, program in PROGRAMS.items()
    ],
)


def shared_paths(name: str) -> re.Pattern[str]:
    """The paths whose responses a configuration shares."""
    text = (NGINX if name == "nginx" else VARNISH).read_text()
    found = re.search(r'location ~ (\S*data\S*) \{|req\.url !~ "(\S*data\S*)"', text)
    assert found is not None
    return re.compile(found[1] or found[2])


@asynccontextmanager
async def shared_cache(name: str, folder: Path, target: int) -> AsyncIterator[int]:
    """The program in front of the port `target` while the block runs; yields its port."""
    port = free_port()
    command = (_nginx if name == "nginx" else _varnish)(folder, port, target)
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(PROGRAMS[name]), *command), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        async for attempt in stamina.retry_context(
            on=OSError, attempts=None, timeout=30, wait_initial=0.02, wait_max=0.1
        ):
            with attempt:
                if process.returncode is not None:
                    raise RuntimeError(f"{name} did not start: {log.read_text()}")
                socket.create_connection(("127.0.0.1", port), 1).close()
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _nginx(folder: Path, port: int, target: int) -> Sequence[str]:
    site = NGINX.read_text()
    for text, own in (
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{target};"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("/var/cache/nginx/kasparro", f"{folder}/cache"),
    ):
        assert text in site
        site = site.replace(text, own)
    (folder / "site.conf").write_text(site)
    temporary = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Its workers give up root's rights, and then cannot enter folders of tests.
    user = "user root;" if os.geteuid() == 0 else ""
    main = folder / "nginx.conf"
    main.write_text(
        f"{user}\ndaemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log stderr;\n"
        f"events {{ worker_connections 512; }}\n"
        f"http {{\naccess_log off;\n{temporary}\ninclude {folder}/site.conf;\n}}\n"
    )
    return ("-c", str(main), "-e", "stderr")


def _varnish(folder: Path, port: int, target: int) -> Sequence[str]:
    text = VARNISH.read_text()
    assert '.port = "8000"' in text
    vcl = folder / "kasparro.vcl"
    vcl.write_text(text.replace('.port = "8000"', f'.port = "{target}"'))
    # Without a second account, which could not enter folders of tests.
    return ("-F", "-j", "none", "-a", f"127.0.0.1:{port}", "-f", str(vcl), "-n", str(folder / "work"))
