"""Decides what to do with a file, from what earlier runs know of it: read it, skip it, or only rename it."""

from collections.abc import Sequence, Set

import msgspec

from kasparro.model.batch import Checkpoint, KnownFile
from kasparro.sources.archives.identity import Identity, Key


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """What to do with a file.

    If it `must_read`, the first `position` rows are already loaded; None: those that the worker knows to be
    loaded. `continues`, `grown` and `replaces` are as in `Checkpoint`. `problem` is why an earlier run
    rejected the file. `renamed` is the checkpoint of a file that has only another name now. `loaded_before`
    says that an earlier run loaded records of it.
    """

    must_read: bool = False
    position: int | None = None
    continues: int | None = None
    grown: bool = False
    replaces: tuple[int, ...] = ()
    problem: str | None = None
    renamed: Checkpoint | None = None
    loaded_before: bool = False

    def placed(self, checkpoint: Checkpoint) -> Checkpoint:
        """A checkpoint of the file, with what it continues or replaces."""
        return msgspec.structs.replace(
            checkpoint, continues=self.continues, grown=self.grown, replaces=self.replaces
        )


def place(name: str, identity: Identity, known: Sequence[KnownFile], names: Set[str]) -> Placement:
    """What to do with a file, if `known` are the files with its name or content, and `names` all files of the
    folder.

    A file that has another content but is read as before continues the earlier one: what that gave stays as
    history. A file that is read in another way, because its name, its overrides or the detection changed,
    replaces what was loaded from it. So does a renamed file.
    """
    if any(file.forgotten and file.name == name and _is_same_file(file, identity) for file in known):
        return Placement()
    live = [file for file in known if not file.forgotten]
    # Under the same key but another name it is a copy, or the same file renamed.
    same = next((file for file in live if file.key == identity.key), None)
    if same is not None and same.problem is not None:
        return Placement(problem=same.problem)
    mine = [file for file in live if file.name == name]
    renamed = [
        file
        for file in live
        if file.content == identity.content and file.name != name and file.name not in names
    ]
    if same is not None and same.complete:
        if same.name != name and same in renamed:
            return Placement(renamed=_renamed(same, name), loaded_before=True)
        return Placement(loaded_before=True)
    if same is not None and same.name != name and same not in renamed:
        # The other file is loaded in this run.
        return Placement()
    if same is None:
        same = next((file for file in mine if _stays(file, identity) and not file.problem), None)
    replaces = tuple(file.id for file in (*mine, *renamed) if file is not same)
    if same is None:
        return Placement(must_read=True, replaces=replaces)
    if same.key == identity.key:
        return Placement(
            must_read=True,
            position=same.position,
            replaces=replaces,
            loaded_before=bool(same.position),
        )
    return Placement(
        must_read=True,
        continues=same.id,
        grown=identity.head is not None,
        replaces=replaces,
    )


def _is_same_file(earlier: KnownFile, identity: Identity) -> bool:
    # Whether the user has changed nothing: an upgrade that reads files differently brings no file back.
    before, now = Key.parse(earlier.key), Key.parse(identity.key)
    return (before.content, before.overrides) == (now.content, now.overrides)


def _stays(earlier: KnownFile, identity: Identity) -> bool:
    # Whether the records of an earlier content of the file stay.
    before, now = Key.parse(earlier.key), Key.parse(identity.key)
    if identity.has_earlier_content or before.content == now.content:
        return before.reads_like(now)
    return before.overrides == now.overrides and earlier.coin == identity.coin


def _renamed(file: KnownFile, name: str) -> Checkpoint:
    return Checkpoint(
        key=file.key,
        name=name,
        position=file.position,
        complete=True,
        bytes=file.bytes,
        interpretation=file.interpretation,
        content=file.content,
        coin=file.coin,
    )
