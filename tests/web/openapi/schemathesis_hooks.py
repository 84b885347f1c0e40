"""What schemathesis cannot know of the API from its description."""

from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """A cursor is signed, so one that was made up is never right, however well it fits its schema."""
    if case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE:
        case.query.pop("cursor", None)


@schemathesis.hook
def filter_query(context: HookContext, query: Any) -> bool:
    """What a query string cannot tell is not asked: an object is nothing or a text there, a list of one is
    its item, one item of a comma list is a list, and an item that holds a comma is two."""
    assert context.operation is not None
    lists = {one.name for one in context.operation.query if one.definition["schema"].get("type") == "array"}
    return all(_is_plain(value, listed=name in lists) for name, value in (query or {}).items())


def _is_plain(value: Any, *, listed: bool) -> bool:
    if isinstance(value, list):
        commas = any(isinstance(item, str) and "," in item for item in value)
        return (listed or len(value) > 1) and not commas and not any(isinstance(item, dict) for item in value)
    return not listed and not isinstance(value, dict)
