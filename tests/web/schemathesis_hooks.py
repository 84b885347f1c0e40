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
    """An object is nothing or a text in a query string, neither of which is wrong where a text is right."""
    return query is None or not any(isinstance(value, dict) for value in query.values())
