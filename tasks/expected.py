"""What pydantic expected of a value, in the words of somebody who writes a file rather than a program."""

from __future__ import annotations

from typing import Any

from tasks.plain_text import shown

_KINDS = {
    "int": "a whole number is expected",
    "float": "a number is expected",
    "finite": "a finite number is expected",
    "bool": "true or false is expected",
    "string": "text is expected",
    "tuple": "a list is expected",
    "list": "a list is expected",
    "dict": "a section is expected, keys with values",
    "model": "a section is expected, keys with values",
    "none": "null is expected",
}
"""By the first word of pydantic's kind of error."""

_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def expected(error: Any) -> str:
    """A clause that says what is expected and what stands there instead.

    Args:
        error: one of a ValidationError's `errors()`.
    """
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        what = f"must be {words} {_number(context[name])}"
    elif kind in ("literal_error", "enum"):
        what = f"one of {context['expected'].replace(' or ', ', ')} is expected".replace("'", "")
    elif kind in ("too_short", "too_long"):
        few = kind == "too_short"
        limit = context["min_length" if few else "max_length"]
        what = f"at {'least' if few else 'most'} {limit} {'is' if limit == 1 else 'are'} expected"
        return f"{what}, not {context['actual_length']}"
    elif kind in ("missing", "missing_positional_only_argument"):
        return f"more values are expected, not {shown(value)}"
    elif kind == "string_pattern_mismatch":
        what = f"text of the form {context['pattern']} is expected"
    else:
        what = _KINDS.get(kind.partition("_")[0], f"{error['msg'][0].lower()}{error['msg'][1:]}")
    return f"{what}, not {shown(value)}"


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) and abs(bound) < 10**12 else f"{bound:g}"
