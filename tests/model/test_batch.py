"""Merged batches: one commit for what the archive worker sends in several messages."""

import msgspec

from kasparro.model.batch import MERGED_BYTES, MERGED_ROWS, Batch, BatchBuilder, BatchMerger, Checkpoint
from kasparro.model.record import InvalidValue, Reject
from tests.support.batches import make_record


def parts(*sizes: int) -> list[Batch]:
    """Batches of one file with so many records, each with a reject and an invalid value."""
    builder, found = BatchBuilder(), []
    for number, size in enumerate(sizes):
        for row in range(size):
            builder.add(make_record(f"coin-{number}-{row}"))
        builder.reject(Reject(reason="bad", raw="x" * number, line=number))
        builder.add_invalid([InvalidValue(field="rank", reason="not a rank", place=f"line {number}")])
        complete = number == len(sizes) - 1
        found.append(builder.take(Checkpoint(key="k", name="a.csv", position=number, complete=complete)))
    return found


def test_merged_batch_has_everything_and_the_last_checkpoint() -> None:
    merger, given = BatchMerger(), parts(3, 0, 2)
    for part in given:
        merger.add(part)
    merged = merger.take()
    assert merged is not None
    assert (merged.rows, merged.valid, merged.fetched) == (5, 5, 8)
    assert merged.lines.keys == b"".join(part.lines.keys for part in given)
    assert merged.lines.contents == b"".join(part.lines.contents for part in given)
    assert [line.split(b"\t")[0] for line in merged.lines.keys.splitlines()] == [b"0", b"1", b"2", b"3", b"4"]
    assert [reject.line for reject in merged.rejects] == [0, 1, 2]
    assert [value.place for value in merged.invalid] == ["line 0", "line 1", "line 2"]
    assert merged.checkpoint == given[-1].checkpoint
    assert merger.take() is None


def test_single_batch_stays_as_it_is() -> None:
    merger = BatchMerger()
    (given,) = parts(2)
    merger.add(given)
    assert merger.take() == given


def test_merged_batch_is_limited_by_records_and_by_bytes() -> None:
    merger, (given,) = BatchMerger(), parts(1)
    merger.add(given)
    assert not merger.full
    merger.add(msgspec.structs.replace(given, fetched=MERGED_ROWS))
    assert merger.full
    merger.take()
    assert not merger.full
    merger.add(msgspec.structs.replace(given, rejects=(Reject(reason="bad", raw="x" * MERGED_BYTES),)))
    assert merger.full
