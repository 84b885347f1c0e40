"""What commands import before their work begins, which decides how early it begins."""

import json
import subprocess
import sys

LIST_MODULES = "import json, sys, {}; print(json.dumps([*sys.modules]))"


def imported_with(module: str) -> set[str]:
    output = subprocess.check_output([sys.executable, "-c", LIST_MODULES.format(module)])
    return set(json.loads(output))


def test_etl_imports_what_starts_its_processes_and_no_more() -> None:
    imported = imported_with("kasparro.cli.commands, kasparro.cli.etl_command")
    assert "kasparro.sources.archives.worker_client" in imported
    later = ("asyncpg", "jinja2", "kasparro.store", "kasparro.pipeline", "kasparro.web")
    assert imported.isdisjoint(later)


def test_service_does_not_import_what_reads_archives() -> None:
    imported = imported_with("kasparro.web.server, kasparro.cli.database_commands")
    reading = ("aiocsv", *(f"kasparro.sources.archives.{name}" for name in ("convert", "detect", "reader")))
    assert imported.isdisjoint(reading)
