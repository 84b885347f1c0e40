"""What the README and the files around the code promise is what the program does."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from kasparro import settings
from kasparro.cli import commands as cli
from kasparro.sources.archives.overrides import Overrides
from kasparro.store import pool
from kasparro.web import middleware, server
from kasparro.web.http import addresses, auth
from kasparro.web.http.connections import Shares
from kasparro.web.http.protocol import Limits
from kasparro.web.routes import data, exports, metrics, runs

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(title: str) -> str:
    return read("README.md").split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def commands() -> list[str]:
    """The one-line commands at the head of the README: run it, test it, see it without a network."""
    head = read("README.md").split("\n## ")[0]
    return [block.strip() for block in re.findall(r"```sh\n(.*?)```", head, re.DOTALL)]


def test_the_settings_table_is_the_settings() -> None:
    told = [[variable.name, variable.meaning, variable.default] for variable in settings.variables().values()]
    assert [[name.strip("`"), *rest] for name, *rest in rows(section("Settings"))] == told


def test_the_row_shown_is_a_record() -> None:
    shown = re.findall(r"```json\n(.*?)```", section("A tour"), re.DOTALL)
    assert [msgspec.json.decode(row, type=data.Record).source for row in shown] == ["csv"]


def test_the_stack_passes_every_setting_on() -> None:
    # KASPARRO_HOME stays where the image has it.
    names = {variable.name for variable in settings.variables().values()} - {"KASPARRO_HOME"}
    passed = set(re.findall(r"^ {6}([A-Z_]+):", read("compose.yaml"), re.MULTILINE))
    assert names <= passed


def test_every_command_is_documented() -> None:
    documented = {shlex.split(cell.strip("`"))[1] for cell, _ in rows(section("Commands"))}
    assert documented == set(cli.main.commands)


def test_the_table_of_routes_is_the_routes() -> None:
    endpoints = [
        *data.ENDPOINTS,
        *exports.ENDPOINTS,
        *runs.ENDPOINTS,
        metrics.ENDPOINT,
        runs.START_RUN,
    ]
    there = {f"{one.method} {re.sub(r':[a-z]+}', '}', one.path)}" for one in endpoints}
    documented = {path for cell, _ in rows(section("Routes")) for path in re.findall(r"`(.*?)`", cell)}
    assert documented == there | {"GET /docs", "GET /openapi.json"}


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_explains_itself(name: str) -> None:
    assert isinstance(cli.main, click.Group)
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_the_archives_example_is_what_check_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = section("Archives")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
    (tmp_path / "kurse.csv").write_text(blocks["csv"], encoding="utf-8")
    (tmp_path / "kurse.csv.toml").write_text(blocks["toml"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "out", Console(width=100))
    command, _, output = blocks["console"].partition("\n")
    arguments = shlex.split(command.removeprefix("$ kasparro "))
    assert CliRunner().invoke(cli.main, arguments).output == output


def test_the_archives_example_names_every_key_of_a_description() -> None:
    toml = dict(re.findall(r"```(\w+)\n(.*?)```", section("Archives"), re.DOTALL))["toml"]
    told = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = )", "", toml))
    told["observed_at"] = told["observed_at"].isoformat()
    assert msgspec.convert(told, Overrides) != Overrides()
    assert set(told) == set(Overrides.__struct_fields__)


def test_the_table_of_recipes_is_the_justfile() -> None:
    recipes = set(re.findall(r"^([a-z]\w*)(?: [^:=]*)?:(?!=)", read("justfile"), re.MULTILINE))
    cells = " ".join(cell for cell, _ in rows(section("Developing")))
    assert set(re.findall(r"`just (\w+)", cells)) == recipes


def test_recipes_call_just_in_a_path_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "a clone"
    folder.mkdir()
    just = shutil.copy(Path(sys.executable).with_name("just"), folder)
    shutil.copy(ROOT / "justfile", folder)
    listed = subprocess.run([just], cwd=folder, capture_output=True, text=True, check=True)
    assert "test *args" in listed.stdout


@pytest.mark.parametrize(
    ("file", "names"), [(".ci/run", ["run", "test"]), (".github/workflows/ci.yml", ["test"])]
)
def test_ci_runs_the_readme_s_commands(file: str, names: list[str]) -> None:
    readme = dict(zip(("run", "test", "demo"), commands(), strict=True))
    lines = [line.strip().removeprefix("run: ") for line in read(file).splitlines()]
    for name in names:
        assert readme[name] in lines


def test_ci_calls_each_of_its_functions() -> None:
    script = read(".ci/run")
    for name in re.findall(r"^(\w+)\(\) \{", script, re.MULTILINE):
        calls = re.findall(rf"(?<![\w-]){name}\b(?!\(\))", re.sub(r"(?m)^(#|export).*", "", script))
        assert calls, f"{name} is defined in .ci/run, but nothing calls it"


def test_the_limits_of_the_security_page_are_the_program_s() -> None:
    limits, shares = Limits(), Shares.of(server.CONNECTIONS)
    text = read("docs/security.md")
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    stated = {name.strip(): value for name, value, *_ in lines}
    assert shares.each * 4 == shares.reserve * 16 == server.CONNECTIONS
    numbers: dict[str, list[float]] = {
        "connections": [server.CONNECTIONS],
        "time for a request to arrive": [limits.request_s, limits.reserve_s],
        "URL": [limits.url_bytes],
        "headers": [limits.headers, limits.request_bytes],
        "body": [middleware.BODY_BYTES],
        "requests sent ahead": [limits.ahead, limits.ahead_bytes],
        "pace of a client that reads slowly": [limits.drain_bytes, limits.drain_s],
        "unread answers of all clients": [shares.waiting_bytes],
        "clients remembered": [auth.CLIENTS],
        "wrong admin tokens without it": [auth.GUESSES.requests, auth.GUESSES.seconds],
        "secrets": [settings.API_KEY_LENGTH],
        "slow queries": [2, pool.READ_TIMEOUT_S, pool.QUEUED, pool.QUEUE_S],
    }
    assert {name: [float(n) for n in re.findall(r"\d+", stated[name])] for name in numbers} == numbers
    assert f"{addresses.HOPS} hops" in text


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt"])
def test_locked_packages_have_hashes_and_no_addresses(file: str) -> None:
    text = read(file)
    assert "://" not in text
    for requirement in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in requirement
