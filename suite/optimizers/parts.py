"""The optimizers that can be part of another: a hybrid combines any first-order with any zeroth-order one."""

from __future__ import annotations

from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field, create_model

from suite.config import settings
from suite.config.registry import Registry
from suite.optimizers.adam8bit import Adam8bit
from suite.optimizers.base import Optimizer, OptimizerSettings
from suite.optimizers.compressed import AdamOnQuantizedGradient, SGDOnQuantizedGradient
from suite.optimizers.first_order import SGD, Adam, AdamW, MeanOfSigns
from suite.optimizers.second_order import EmpiricalFisher
from suite.optimizers.zeroth_order import (
    ZOSGD,
    ForwardGradient,
    RAdaZO,
    RAdaZOCode,
    ZerothOrderOptimizer,
    ZOAdam,
    ZOConservative,
    ZOMuon,
    ZOSignSGD,
    ZOSlopeSign,
)

SHARED_SETTINGS = {*OptimizerSettings.model_fields, "zo"} - {"name"}
"""Settings that a part takes from the optimizer that contains it."""


class PartSettings(settings.Settings):
    """An optimizer's settings without step size, schedule and directions, which it takes from its container."""

    name: str


P = TypeVar("P", bound=type[Optimizer[Any]])


class Parts(Registry[P]):
    """A registry of optimizers that can be part of another."""

    @cached_property
    def _settings(self) -> dict[str, type[PartSettings]]:
        return {name: part_settings(kind) for name, kind in self.items()}

    @property
    def parts(self) -> Any:
        """Type of a settings field that holds any of them, without the settings of the containing optimizer."""
        return Annotated[reduce(or_, self._settings.values()), Field(discriminator="name")]

    def default(self, name: str) -> Any:
        """Default of such a field: this part with its default settings."""
        return Field(default_factory=lambda: self._settings[name](name=name))


def part_settings(kind: type[Optimizer[Any]]) -> type[PartSettings]:
    """The settings of an optimizer as a part."""
    own = {name: field for name, field in kind.Settings.model_fields.items() if name not in SHARED_SETTINGS}
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in own.items()}
    return create_model(f"{kind.__name__}Part", __base__=PartSettings, __doc__=kind.Settings.__doc__, **fields)


def standalone_settings(
    registry: Parts[Any],
    part: PartSettings,
    parent: OptimizerSettings,
    *,
    lr: float,
    zo: settings.Settings | None = None,
) -> OptimizerSettings:
    """The settings of a part of `parent`, completed to those of an independent optimizer.

    Raises:
        ValueError: a setting of `zo` that this part does not have.
    """
    kind = registry[part.name].Settings
    values = {name: getattr(part, name) for name in type(part).model_fields}
    if zo is not None:
        known = kind.model_fields["zo"].annotation
        if unknown := sorted(zo.changed().keys() - known.model_fields.keys()):
            raise ValueError(f"{part.name} has no zo.{unknown[0]} (allowed: {', '.join(known.model_fields)})")
        values["zo"] = known(**{name: getattr(zo, name) for name in known.model_fields})
    return kind(lr=lr, schedule=parent.schedule, warmup=parent.warmup, **values)


FIRST_ORDER: Parts[type[Optimizer[Any]]] = Parts(
    "first-order optimizer",
    [
        Adam,
        AdamW,
        Adam8bit,
        SGD,
        MeanOfSigns,
        EmpiricalFisher,
        AdamOnQuantizedGradient,
        SGDOnQuantizedGradient,
    ],
)

ZEROTH_ORDER: Parts[type[ZerothOrderOptimizer[Any]]] = Parts(
    "zeroth-order optimizer",
    [
        RAdaZO,
        RAdaZOCode,
        ZOSGD,
        ZOSignSGD,
        ZOSlopeSign,
        ZOAdam,
        ZOMuon,
        ZOConservative,
        ForwardGradient,
    ],
)

# Types of settings fields that hold any first-order, or any zeroth-order part.
if TYPE_CHECKING:
    FirstPart = PartSettings
    ZerothPart = PartSettings
else:
    FirstPart = FIRST_ORDER.parts
    ZerothPart = ZEROTH_ORDER.parts
