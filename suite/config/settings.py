"""Settings: frozen, strict, and rejected with a message that says what to change.

`Settings` is the base of everything a spec contains. `parse` makes one from a mapping (from YAML or the command line),
and turns pydantic's errors into ours: the key, what is allowed, the nearest match.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from suite.config.errors import SpecError
from tasks.files import nearest


class Settings(BaseModel):
    """A frozen, strict group of settings. Numbers are finite; text is not converted to a number, nor 1 to true."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True
    )

    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as plain JSON values; `name` always stays.

        This is the canonical form: a setting that is added later does not change old ids while it is at its default.
        """
        plain = {}
        for key, value in self:
            if key != "name" and value == type(self).model_fields[key].get_default(call_default_factory=True):
                continue
            plain[key] = value.changed() if isinstance(value, Settings) else _plain(value)
        return plain


S = TypeVar("S", bound=Settings)


def parse(kind: type[S], data: Mapping[str, Any], prefix: str = "") -> S:
    """Validate `data` as settings of this kind.

    Args:
        prefix: where the settings stand in the file (`optimizer.`), for the message.

    Raises:
        SpecError: naming the key, the allowed values and the nearest match.
    """
    try:
        return kind.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        # Only one error, the most informative one: an unknown key usually causes the others.
        worst = min(error.errors(), key=lambda e: (e["type"] != "extra_forbidden", len(e["loc"])))
        raise SpecError(_sentence(kind, worst, data, prefix)) from None
    except ValueError:
        raise SpecError(f"{prefix.rstrip('.') or 'spec'}: a number in it is not finite") from None
    except TypeError as error:
        raise SpecError(
            f"{prefix.rstrip('.') or 'spec'}: {error}. Numbers, text, lists and mappings are read"
        ) from None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value  # a StrEnum is written as its value


def _sentence(kind: type[Settings], error: ErrorDetails, data: Mapping[str, Any], prefix: str) -> str:
    loc, section, family = _locate(kind, error["loc"])
    where = prefix + ".".join(loc)
    match error["type"]:
        case "extra_forbidden":
            allowed = list(section.model_fields) if section else []
            close = difflib.get_close_matches(loc[-1], allowed, n=1, cutoff=0.5)
            hint = f" Did you mean {'.'.join([*where.split('.')[:-1], close[0]])}?" if close else ""
            names = [name for name, member in family.items() if member is section]
            if names and (others := [name for name, member in family.items() if loc[-1] in member.model_fields]):
                hint = f" It is a setting of {', '.join(others)}, not of {names[0]}."
            return f"{where}: unknown key.{hint} (allowed{' of ' + names[0] if names else ''}: {', '.join(allowed)})"
        case "union_tag_invalid":
            allowed = [tag.strip("' ") for tag in error["ctx"]["expected_tags"].split(",")]
            return f"{where}.name: unknown: {error['ctx']['tag']}.{nearest(error['ctx']['tag'], allowed)} " + (
                f"(allowed: {', '.join(allowed)})"
            )
        case "union_tag_not_found":
            return f"{where}.name: missing. Say which one, e.g. {where}.name=..."
        case "missing":
            return f"{where}: missing, and it has no default."
        case "value_error":
            return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"{where}: {message}, not {json.dumps(error['input'], default=str)}"


def _locate(
    kind: type[Settings], loc: tuple[int | str, ...]
) -> tuple[list[str], type[Settings] | None, dict[str, type[Settings]]]:
    """The key path without pydantic's union tags, the settings class at its end, and its union's members by name."""
    path: list[str] = []
    section: type[Settings] | None = kind
    family: dict[str, type[Settings]] = {}
    for part in loc:
        if section is None and part in family:
            section = family[str(part)]
            continue
        path.append(str(part))
        field = section.model_fields.get(str(part)) if section else None
        if field:
            section, family = settings_in(field.annotation)
    return path, section, family


def settings_in(annotation: Any) -> tuple[type[Settings] | None, dict[str, type[Settings]]]:
    """The settings class of an annotation, or the members by name where it is a union of settings classes."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation, {}
    members: dict[str, type[Settings]] = {}
    for arg in getattr(annotation, "__args__", ()):
        if isinstance(arg, type) and issubclass(arg, Settings):
            name = arg.model_fields.get("name")
            members[name.default if name else ""] = arg
    if list(members) == [""]:
        return members[""], {}
    return None, members
