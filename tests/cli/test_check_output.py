"""`kasparro check` prints what archives would load, without a database."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kasparro.cli import commands

GOOD = "snapped_at,price,market_cap,total_volume\n2021-05-20 00:00:00 UTC,0.1371,,2724.5\n"
HALF_BAD = "date,price_usd\n2021-05-20,1.5\n2021-05-21,one\n"


def check(*arguments: object) -> Result:
    return CliRunner().invoke(commands.main, ["check", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "btc-usd-max.csv").write_text(GOOD)
    (tmp_path / "eth.csv").write_text(HALF_BAD)
    (tmp_path / "eur.csv").write_text("date,price_eur\n2021-05-20,1.5\n")
    return tmp_path


def test_good_file_exits_with_0(folder: Path) -> None:
    result = check(folder / "btc-usd-max.csv")
    assert result.exit_code == 0
    assert "CoinGecko export" in result.output


def test_rejects_are_shown_by_reason(folder: Path) -> None:
    result = check(folder / "eth.csv")
    assert result.exit_code == 1
    (row,) = [line for line in result.output.splitlines() if "2021-05-21,one" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "1",
        "price_usd",
        "not a number: 'one'",
        "3",
        "2021-05-21,one",
    ]


def test_folders_globs_and_several_files(folder: Path) -> None:
    assert len(json.loads(check("--json", folder).output)["files"]) == 3
    assert len(json.loads(check("--json", folder / "e*.csv").output)["files"]) == 2
    assert len(json.loads(check("--json", folder / "eth.csv", folder / "eur.csv").output)["files"]) == 2


def test_json_is_complete_and_ascii(folder: Path) -> None:
    (folder / "eth.csv").write_text(HALF_BAD + "2021-05-22,\u202e\x9b31m\n2021-05-23,2\n2021-05-24,3\n")
    output = check("--json", "--explain", folder / "eth.csv").output
    assert output.isascii()
    (file,) = json.loads(output)["files"]
    assert (file["rows"], file["rejected"], file["problem"]) == (3, 2, None)
    assert file["reasons"][0]["first"][1]["raw"] == "2021-05-22,\u202e\x9b31m"
    price = file["recognition"]["columns"][1]
    assert (price["field"], price["cells"][0]) == ("price_usd", {"raw": "1.5", "stored": "1.5"})


def test_file_with_mostly_bad_rows_is_rejected(folder: Path) -> None:
    (folder / "eth.csv").write_text(HALF_BAD + "2021-05-22,two\n")
    (file,) = json.loads(check("--json", folder / "eth.csv").output)["files"]
    assert (file["rows"], file["rejected"]) == (0, 2)
    assert "2 of 3 rows would be rejected" in file["problem"]
    assert [reject["line"] for reject in file["reasons"][0]["first"]] == [3, 4]


def test_explain_shows_each_column(folder: Path) -> None:
    (folder / "odd.csv").write_text(
        "unix;symbol;Schluss;Menge\n1609459200;BTC/USD;1.234,50;7\n1609545600;BTC/USD;1,5;7\n"
    )
    output = check("--explain", folder / "odd.csv").output
    for text in (
        "semicolon",
        "comma",
        "utf-8",
        "by the pairs in its",
        "each row's own",
        "1.234,50 -> 1234.5",
        "1609459200 -> 2021-01-01 23:59:59+00:00",
        "BTC/USD -> BTC",
        "not read",
    ):
        assert text in output


def test_text_of_a_file_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m-usd.csv"
    path.write_text(
        "date,price\x1b]0;x\x07,p\u202erice_usd\n2021-05-20,[red]1,2\n2021-05-21,3,\x1b[2J\n2021-05-22,3,3\n"
    )
    for option in ("--explain", "--json"):
        output = check(option, path).output
        assert not any(c in output for c in "\x1b\x07\u202e\x9b")
        assert "u001b" in output or "x1b" in output


def test_lines_for_the_overrides_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "Bitcoin DE.csv"
    path.write_text("date,close\n2021-05-20,1.5\n2021-05-21,2.5\n")

    lines = check(path).output.splitlines()
    start = next(
        number for number, line in enumerate(lines) if line.endswith(".csv.toml next to it can say:")
    )
    path.with_name("Bitcoin DE.csv.toml").write_text("\n".join(lines[start + 1 :]))

    assert lines[start + 1].startswith('currency = "USD"  # ')
    assert check(path).exit_code == 0


def test_wrong_usage_exits_with_2(tmp_path: Path) -> None:
    assert check().exit_code == 2
    assert check(tmp_path / "nosuch.csv").exit_code == 2
    assert check(tmp_path).exit_code == 2


def test_no_database_is_used_or_created(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("KASPARRO_HOME", str(folder / "home"))
    before = sorted(folder.iterdir())
    assert check(folder / "btc-usd-max.csv").exit_code == 0
    assert sorted(folder.iterdir()) == before
