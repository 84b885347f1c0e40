"""What a run does with a file, from what earlier runs know of it."""

from typing import Any

import msgspec

from kasparro.model.batch import KnownFile
from kasparro.sources.archives.identity import Head, Identity
from kasparro.sources.archives.placement import Placement, place

HEAD = Head(position=3, bytes=9, line=4, interpretation="btc")


def key(content: str = "c1", reading: str = "btc", overrides: str = "") -> str:
    return f"5:{content}:{overrides}:{reading}"


def known(number: int = 1, name: str = "a.csv", text: str = "", **values: Any) -> KnownFile:
    """A file that was loaded to its end, unless `values` say otherwise."""
    text = text or key()
    given: dict[str, Any] = {
        "position": 3,
        "complete": True,
        "bytes": 9,
        "interpretation": "btc",
        "coin": "btc",
    } | values
    return KnownFile(id=number, key=text, name=name, content=text.split(":")[1], **given)


def identity(text: str = "", coin: str = "btc", earlier: bool = True, head: Head | None = None) -> Identity:
    return Identity(key=text or key(), coin=coin, has_earlier_content=earlier, head=head)


def placed(
    found: Identity, *files: KnownFile, name: str = "a.csv", others: tuple[str, ...] = ()
) -> Placement:
    """The placement of the file `name` in a folder with `others`."""
    return place(name, found, files, {name, *others})


def test_new_file_is_read() -> None:
    assert placed(identity(earlier=False)) == Placement(must_read=True)


def test_loaded_file_is_skipped() -> None:
    assert placed(identity(), known()) == Placement(loaded_before=True)


def test_interrupted_load_continues() -> None:
    assert placed(identity(), known(complete=False)) == Placement(
        must_read=True, position=3, loaded_before=True
    )


def test_copy_of_a_loaded_file_is_skipped() -> None:
    assert placed(identity(), known(name="b.csv"), others=("b.csv",)) == Placement(loaded_before=True)


def test_renamed_file_gets_its_new_name() -> None:
    found = placed(identity(), known(name="gone.csv"))

    assert not found.must_read
    assert found.renamed is not None
    assert (found.renamed.name, found.renamed.key, found.renamed.complete) == ("a.csv", key(), True)


def test_renamed_file_that_is_read_in_another_way_replaces_the_earlier_one() -> None:
    assert placed(identity(key(reading="eth"), "eth"), known(name="gone.csv")) == Placement(
        must_read=True, replaces=(1,)
    )


def test_copy_that_is_read_in_another_way_replaces_nothing() -> None:
    found = placed(identity(key(reading="eth"), "eth"), known(name="b.csv"), others=("b.csv",))

    assert found == Placement(must_read=True)


def test_grown_file_continues() -> None:
    assert placed(identity(key("c2"), head=HEAD), known()) == Placement(
        must_read=True, continues=1, grown=True
    )


def test_other_content_that_is_read_as_before_keeps_the_earlier_rows() -> None:
    found = identity(key("c2", "a column more"), earlier=False)

    assert placed(found, known()) == Placement(must_read=True, continues=1)


def test_other_content_with_other_overrides_or_coin_replaces_the_earlier_rows() -> None:
    for changed in (
        identity(key("c2", "eth"), "eth", earlier=False),
        identity(key("c2", overrides="o"), earlier=False),
    ):
        assert placed(changed, known()) == Placement(must_read=True, replaces=(1,))


def test_overrides_that_are_restored_during_a_reload_take_the_new_rows_back() -> None:
    # The second row began to replace the first, which lost records to it.
    first, second = known(1, complete=False, position=0), known(2, text=key(reading="eth"), complete=False)

    assert placed(identity(), first, second) == Placement(must_read=True, position=0, replaces=(2,))


def test_forgotten_file_is_skipped_until_its_key_changes() -> None:
    forgotten = known(forgotten=True)

    assert placed(identity(), forgotten) == Placement()
    assert placed(identity(key("c2"), earlier=False), forgotten).must_read
    assert placed(identity(), msgspec.structs.replace(forgotten, name="b.csv")).must_read


def test_rejected_file_is_reported_without_reading_it() -> None:
    assert placed(identity(), known(problem="two prices", complete=False)) == Placement(problem="two prices")


def test_changed_file_replaces_a_rejected_one() -> None:
    rejected = known(problem="two prices", complete=False, position=0)

    assert placed(identity(key("c2"), earlier=False), rejected) == Placement(must_read=True, replaces=(1,))
