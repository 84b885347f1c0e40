"""What schemathesis cannot know from the OpenAPI document."""

from typing import Any

import schemathesis
from schemathesis import Case, GenerationMode, HookContext


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Remove generated cursors. They are signed, so an invented one is never valid."""
    if case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE:
        case.query.pop("cursor", None)


@schemathesis.hook
def filter_query(context: HookContext, query: Any) -> bool:
    """Skip values that a query string cannot express. There, an object becomes nothing or text, a list of one
    becomes its item, an item of a comma list is a list, and an item with a comma is two items."""
    assert context.operation is not None
    lists = {
        parameter.name
        for parameter in context.operation.query
        if parameter.definition["schema"].get("type") == "array"
    }
    return all(_is_expressible(value, is_list=name in lists) for name, value in (query or {}).items())


def _is_expressible(value: Any, *, is_list: bool) -> bool:
    if isinstance(value, list):
        commas = any(isinstance(item, str) and "," in item for item in value)
        return (
            (is_list or len(value) > 1) and not commas and not any(isinstance(item, dict) for item in value)
        )
    return not is_list and not isinstance(value, dict)
