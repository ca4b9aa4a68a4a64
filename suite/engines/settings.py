"""The settings of the engine, with a section for each engine that has settings of its own: `measure.NAME`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, create_model

from suite.config.errors import SpecError
from suite.config.settings import Settings
from suite.engines import ENGINES, base


def _section(name: str, kind: type[Settings]) -> type[Settings]:
    """An engine's settings as the section with its name, in which nobody has to write the name again.

    Raises:
        SpecError: there can be no section of this name.
    """
    if problem := base.no_section(name):
        raise SpecError(f"engine {name}: {problem}")
    section = create_model(f"Section_{name}", __base__=kind, __module__=__name__, name=(ClassVar[str], name))
    section.__doc__ = kind.__doc__
    return section


def _sections() -> dict[str, Any]:
    """Sections by name, with their defaults."""
    kinds = {name: engine.Settings for name, engine in ENGINES.items() if len(engine.Settings.model_fields) > 1}
    sections = {name: _section(name, kind) for name, kind in kinds.items()}
    globals().update({section.__name__: section for section in sections.values()})  # where pickle looks for them
    return {name: (_given(section, kinds[name]), section()) for name, section in sections.items()}


def _given(section: type[Settings], kind: type[Settings]) -> Any:
    """The type of a section that may also be given as an instance of the engine's settings, from Python."""

    def without_name(given: Any) -> Any:
        return section(**{key: value for key, value in given if key != "name"}) if type(given) is kind else given

    return Annotated[section, BeforeValidator(without_name)]


if TYPE_CHECKING:
    from suite.engines.base import EngineSettings as EngineSettings
else:
    EngineSettings = create_model(
        "EngineSettings", __base__=base.EngineSettings, __module__=__name__, __doc__=base.EngineSettings.__doc__,
        **_sections(),
    )  # fmt: skip
