"""The pages on commands, settings and recipes agree with the program."""

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from kasparro.cli import commands as cli
from kasparro.settings import URL_FILES, URL_IGNORED, URL_PARAMETERS
from kasparro.sources import registry
from tests.conftest import OPEN_FILES
from tests.support.documents import ROOT, read, rows, section


def test_page_names_every_parameter_of_a_database_url() -> None:
    page = section("docs/configuration.md", "Settings")
    parts = page.split("\n### Database URLs\n")[1].split("\n### ")[0].split("\n- ")[1:]
    names = [set(re.findall(r"`(\w+)`", part.split(". ")[0])) for part in parts]
    assert names[0] | {"options"} == URL_PARAMETERS | URL_FILES
    assert set().union(*names[2:]) == URL_IGNORED


def test_settings_table_lists_the_settings() -> None:
    expected = [
        f"| `{setting.name}` | {setting.meaning} | {setting.default} |" for setting in registry.variables()
    ]
    lines = section("docs/configuration.md", "Settings").splitlines()
    assert [line for line in lines if line.startswith("|")][2:] == expected


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/api.md",
        "docs/archives.md",
        "docs/data.md",
        "docs/operations.md",
        "docs/security.md",
    ],
)
def test_settings_that_pages_name_exist(page: str) -> None:
    names = set(re.findall(r"\bKASPARRO_\w+", read(page)))
    assert names <= {variable.name for variable in registry.variables()}


def test_compose_passes_every_setting_on() -> None:
    # KASPARRO_HOME stays where the image has it.
    names = {variable.name for variable in registry.variables()} - {"KASPARRO_HOME"}
    listed = re.findall(r"^ {6}([A-Z_]+):", read("compose.yaml"), re.MULTILINE)
    assert names <= set(listed)
    # Compose rejects a file that has a key twice.
    assert len(listed) == len(set(listed))


def commands() -> dict[str, click.Command]:
    context = click.Context(cli.main)
    found = {name: cli.main.get_command(context, name) for name in cli.main.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def test_every_command_is_documented() -> None:
    text = section("docs/configuration.md", "Commands").split("\n### ")[0]
    usage = {shlex.split(cell.strip("`"))[1]: cell for cell, _ in rows(text)}
    assert set(usage) == set(commands())
    for name, command in commands().items():
        options = {
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        }
        assert set(re.findall(r"--[a-z]+", usage[name])) <= options
        assert options <= {*re.findall(r"--[a-z]+", usage[name]), "--workers"}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help(name: str) -> None:
    assert isinstance(cli.main, click.Group)
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_recipes_table_lists_the_recipes() -> None:
    recipes = set(re.findall(r"^([a-z]\w*)(?: [^:=]*)?:(?!=)", read("justfile"), re.MULTILINE))
    cells = " ".join(cell for cell, _ in rows(section("CONTRIBUTING.md", "Set-up")))
    assert set(re.findall(r"`just (\w+)", cells)) == recipes


def test_test_variables_exist() -> None:
    documented = {cell.strip("`") for cell, *_ in rows(section("CONTRIBUTING.md", "Tests"))}
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    read_by_tests = set(re.findall(r"environ(?:\.get\(|\[)\"(KASPARRO_TEST_\w+)\"", code))
    assert {name for name in documented if name.startswith("KASPARRO_")} == read_by_tests


def test_contributing_names_the_open_files_that_tests_need() -> None:
    assert f" {OPEN_FILES} open files" in section("CONTRIBUTING.md", "Tests")
