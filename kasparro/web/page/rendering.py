"""Renders the page's templates, and has its static files under a name that changes with their content."""

import re
from datetime import datetime
from decimal import Decimal
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup, escape

from kasparro import __version__
from kasparro.sources.base import utc_now
from kasparro.web.page import numbers

_FOLDER = files("kasparro.web.page")
MEDIA_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

# No script or style that is not a file of ours runs, and no other host is asked for anything.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def _static_files() -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in sorted((_FOLDER / "static").iterdir(), key=lambda file: file.name)
        if file.name.rpartition(".")[2] in MEDIA_TYPES
    }


STATIC_FILES = _static_files()
# Modules import each other by relative paths, so all files share one version.
STATIC_VERSION = blake2b(
    b"".join(name.encode() + content for name, content in STATIC_FILES.items()), digest_size=6
).hexdigest()


_DASH = "\N{EN DASH}"
_IMPORT = re.compile(r'from "\./(\w+)\.js"')


@cache
def modules(name: str) -> tuple[str, ...]:
    """The module of this name, and all that it imports, so that browsers load them at once."""
    found = [name]
    for module in found:
        imported = _IMPORT.findall(STATIC_FILES[f"{module}.js"].decode())
        found += [other for other in dict.fromkeys(imported) if other not in found]
    return tuple(found)


def _value(value: Decimal | None, kind: str, unit: str = "") -> Markup:
    """A number for people that carries its exact digits; a dash if it is null."""
    if value is None:
        return Markup('<span class="none" title="unknown">{}</span>').format(_DASH)
    digits = numbers.exact(value)
    shown = {
        "price": numbers.price,
        "compact": numbers.compact,
        "percent": numbers.percent,
        "share": numbers.share,
    }[kind](value)
    full = f"{digits}%" if kind in {"percent", "share"} else f"{digits} {unit}".rstrip()
    prefix = "$" if unit == "USD" else ""
    if prefix and shown.startswith(numbers.MINUS):
        prefix, shown = f"{numbers.MINUS}$", shown[1:]
    name = numbers.direction(value) if kind == "percent" else "number"
    # Escaping all of it would take most of the time of a table. Only `unit` is not of our own making.
    return Markup(f'<data value="{digits}" title="{escape(full)}" class="{name}">{prefix}{shown}</data>')  # noqa: S704


def _when(moment: datetime | None, missing: str = "never") -> Markup:
    """How long ago a moment was, with the moment itself; a module keeps it current."""
    if moment is None:
        return Markup('<span class="none">{}</span>').format(missing)
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S}Z"
    past = (utc_now() - moment).total_seconds()
    text = numbers.whole_duration(abs(past))
    text = "now" if abs(past) < 1 else f"{text} ago" if past > 0 else f"in {text}"
    return Markup('<time datetime="{}" title="{} UTC" data-age>{}</time>').format(
        stamp, f"{moment:%Y-%m-%d %H:%M:%S}", text
    )


def _count(value: int) -> str:
    return f"{value:,}"


_environment = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: (_FOLDER / "templates" / name).read_text("utf-8")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
    auto_reload=False,
)
_environment.filters |= {"count": _count, "duration": numbers.duration, "when": _when}
_environment.globals |= {
    "price": lambda value: _value(value, "price", "USD"),
    "amount": lambda value: _value(value, "compact", "USD"),
    "quantity": lambda value, unit="": _value(value, "compact", unit),
    "share": lambda value: _value(value, "share"),
    "number": numbers.exact,
    "percent": lambda value: _value(value, "percent"),
    "static": f"page/static/{STATIC_VERSION}/",
    "version": __version__,
}


def render(template: str, **shown: Any) -> str:
    """The text of a template. Values are escaped."""
    return _environment.get_template(template).render(**shown)


def data_block(name: str, json: str) -> Markup:
    """JSON for the modules of the page, in an element that runs nothing."""
    # Within a script element only `<` can begin markup.
    return Markup('<script type="application/json" id="{}">{}</script>').format(
        name,
        Markup(json.replace("<", "\\u003c")),  # noqa: S704 - nothing in it can end the element
    )
