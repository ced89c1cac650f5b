"""One option: its default, help, type and limits, as the metadata of a field."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "at least": operator.ge,
    "greater than": operator.gt,
    "less than": operator.lt,
}


def option(
    default: Any,
    text: str,
    choices: Iterable[str] = (),
    kind: Callable[[Any], Any] | None = None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a field of a class of options."""
    # An option that is not set by default is a text, unless `kind` says otherwise.
    kind = kind or (str if default is None else type(default))
    limits = {"at least": at_least, "greater than": above, "less than": below}
    bounds = {word: limit for word, limit in limits.items() if limit is not None}
    metadata = {"help": text, "choices": tuple(choices), "kind": kind, "bounds": bounds}
    return dataclasses.field(default=default, metadata=metadata)


def within(field: dataclasses.Field[Any], value: Any) -> tuple[bool, str, str]:
    """Return whether a value is within the limits of a field, the field's name, and the limits."""
    bounds = field.metadata["bounds"]
    holds = all(_HOLDS[word](value, bound) for word, bound in bounds.items())
    return holds, field.name, " and ".join(map(_limit, bounds, bounds.values()))


def _limit(word: str, bound: float) -> str:
    if bound == math.inf:
        return "finite"
    return f"{word} {'2**63' if bound == 2**63 else f'{bound:g}'}"


def toml(value: str | int | float | bool) -> str:
    """Write one value as TOML, whose strings escape as JSON's do, but for DEL."""
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
