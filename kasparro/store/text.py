"""Makes texts from outside fit for PostgreSQL."""

TEXT_LIMIT = 4_000


def sanitize(text: str) -> str:
    """Text that PostgreSQL can store: at most TEXT_LIMIT characters, with escapes for those it cannot
    store."""
    short = text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}…"
    return short.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
