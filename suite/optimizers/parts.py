"""The optimizers that others are made of: a hybrid takes any of the first with any of the zeroth order."""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from typing import Annotated, Any

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
    ZOAdam,
    ZOConservative,
    ZOSignSGD,
    ZOSlopeSign,
)

OF_THE_WHOLE = {*OptimizerSettings.model_fields, "zo"}
"""Settings that a part has from the optimizer that it is part of."""


class Parts(Registry[type[Optimizer]]):
    """Optimizers that can be a part."""

    @property
    def parts(self) -> Any:
        """Type of a settings field that holds any of them, without what belongs to the whole."""
        return Annotated[reduce(or_, map(part_settings, self.values())), Field(discriminator="name")]

    def default(self, name: str) -> Any:
        """Default of such a field: this part with its own defaults."""
        return Field(default_factory=lambda: part_settings(self[name])())


@cache
def part_settings(kind: type[Optimizer]) -> type[settings.Settings]:
    """The optimizer's settings without step size, schedule and directions."""
    own = {name: field for name, field in kind.Settings.model_fields.items() if name not in OF_THE_WHOLE}
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in own.items()}
    return create_model(f"{kind.__name__}Part", __base__=settings.Settings, __doc__=kind.Settings.__doc__, **fields)


def whole(
    registry: Parts, part: settings.Settings, of: OptimizerSettings, *, lr: float, zo: settings.Settings | None = None
) -> OptimizerSettings:
    """The settings of a part as an optimizer of its own.

    Raises:
        ValueError: a setting of `zo` that this part does not have.
    """
    kind = registry[part.name].Settings
    given = {name: getattr(part, name) for name in type(part).model_fields}
    if zo is not None:
        known = kind.model_fields["zo"].annotation
        if unknown := sorted(zo.changed().keys() - known.model_fields.keys()):
            raise ValueError(f"{part.name} has no zo.{unknown[0]} (allowed: {', '.join(known.model_fields)})")
        given["zo"] = known(**{name: getattr(zo, name) for name in known.model_fields})
    return kind(lr=lr, schedule=of.schedule, warmup=of.warmup, **given)


FIRST_ORDER = Parts(
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

ZEROTH_ORDER = Parts(
    "zeroth-order optimizer",
    [
        RAdaZO,
        ZOSGD,
        ZOSignSGD,
        ZOSlopeSign,
        ZOAdam,
        ZOConservative,
        ForwardGradient,
    ],
)
