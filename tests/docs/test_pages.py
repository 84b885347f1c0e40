"""Links lead somewhere, the map of the code is complete, and the words are plain."""

import re
from pathlib import Path

import pytest

from tests.support.documents import ROOT, pages, read, rows, section

PAGES = [str(page.relative_to(ROOT)) for page in pages()]

# Words that had a private meaning in this project, or that make a reader stop.
PRIVATE = (
    "anew",
    "beside",
    "goes? on",
    "gone on",
    "hearsay",
    "in the midst",
    "refuse[ds]?",
    "so long as",
    "spell(?:ing|ings)",
    "spelt",
    "t[o]ld",
    "vouched",
    "walk(?:ed|s)?",
    "who asks",
    "whoever",
)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", read(page)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES)
def test_words_are_plain(page: str) -> None:
    prose = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", read(page))
    found = re.findall(rf"\b(?:{'|'.join(PRIVATE)})\b", prose, re.IGNORECASE)
    assert not found


@pytest.mark.parametrize("folder", ["kasparro", "sql", "tests"])
def test_code_has_no_private_words(folder: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".sql", ".js"} and path != Path(__file__)
        for word in re.findall(
            r"\b(?:anew|hearsay|spelt|t[o]ld|vouched|whoever)\b", path.read_text(), re.IGNORECASE
        )
    }
    assert not found


def test_readme_links_every_page() -> None:
    readme = read("README.md")
    missing = [
        page
        for page in PAGES
        if page != "README.md" and not page.startswith("docs/decisions/") and f"]({page})" not in readme
    ]
    assert not missing


def test_decisions_are_numbered() -> None:
    names = sorted(path.name for path in (ROOT / "docs/decisions").glob("0*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    for number, name in enumerate(names, start=1):
        title = read(f"docs/decisions/{name}").splitlines()[0].removeprefix(f"# {number}. ")
        assert f"\n{number}. [{title}]({name})\n" in read("docs/decisions/README.md")


def test_architecture_map_names_what_exists() -> None:
    """Each folder and module in the map exists; a module may be named relative to its folder."""
    for folder, text in rows(section("docs/architecture.md", "Map")):
        path = ROOT / folder.strip("`")
        assert path.exists(), folder
        for name in re.findall(r"`([\w./]+(?:\.py|/))`", text):
            nested = re.findall(r"`(\w+)/`", text)
            assert any((path / sub / name).exists() for sub in ("", *nested)), f"{folder}: {name}"


def test_architecture_answers_name_files_that_exist() -> None:
    answers = rows(section("docs/architecture.md", "Where is it?"))
    missing = [
        name for _, answer in answers for name in re.findall(r"`(.*?)`", answer) if not (ROOT / name).exists()
    ]
    assert not missing


def test_architecture_map_has_every_folder() -> None:
    mapped = {folder.strip("`") for folder, _ in rows(section("docs/architecture.md", "Map"))}
    there = {
        str(path.parent.relative_to(ROOT))
        for path in ROOT.glob("kasparro/*/*.py")
        if "__pycache__" not in str(path)
    }
    assert there <= mapped


def test_glossary_is_in_alphabetical_order() -> None:
    terms = [term for term, _ in rows(read("docs/glossary.md"))]
    assert terms == sorted(terms, key=str.lower)


def test_diagrams_name_modules_that_exist() -> None:
    for name in re.findall(r"\((\w+/[\w/]*(?:\.py)?)\)", read("docs/architecture.md")):
        assert (ROOT / "kasparro" / Path(name)).exists(), name
