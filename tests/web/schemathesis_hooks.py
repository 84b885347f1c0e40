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
    """What a query string cannot tell is not asked: an object is nothing or a text there, and an item of a
    comma list that holds a comma is two."""
    values = [*(query or {}).values()]
    items = [item for value in values if isinstance(value, list) for item in value]
    divided = any(isinstance(item, str) and "," in item for item in items)
    return not divided and not any(isinstance(one, dict) for one in (*values, *items))
