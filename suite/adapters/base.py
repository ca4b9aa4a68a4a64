"""What an adapter is: the parameters that the steps move, and how they become ordinary weights again.

Whatever is trained, what is published is an ordinary model: engines, attacks and other people's code see no adapter.
The training model keeps its adapter unmerged, so publishing in mid-run changes nothing about the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, Literal

from torch import Tensor, nn

from suite.config import settings
from suite.oracle.base import Tensors


class AdapterSettings(settings.Settings):
    """Settings that every adapter has: none yet."""


class Adapter:
    """What is trained instead of the weights. Making one puts it into the model, in place, and freezes the rest.

    Args:
        model: an ordinary causal language model; its trainable parameters say what may be moved.
        seed: of the adapter's initial values.

    Attributes:
        before: the ordinary weights that it changes, by parameter name, as they were when it was made.
    """

    Settings: ClassVar[type[AdapterSettings]] = AdapterSettings
    source: ClassVar[str] = ""

    before: dict[str, Tensor]

    def __init__(self, settings: AdapterSettings, model: nn.Module, seed: int) -> None:
        self.settings = settings
        self.model = model
        self._ordinary: dict[str, nn.Module] = {}
        """Modules that the adapter stands in for, by name."""

    @property
    def parameters(self) -> list[Tensor]:
        """What the steps move, in the order of the oracle's parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def merged(self, weights: Tensors | None = None) -> Mapping[str, Tensor]:
        """The ordinary weights that it changes, by name, not yet rounded to the model's dtype.

        Args:
            weights: values to take in the place of `parameters`, shaped like them (e.g. their average).
        """
        raise NotImplementedError

    @contextmanager
    def exported(self, weights: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The model as an ordinary one with these weights, rounded once; afterwards what it was, bit for bit.

        Args:
            weights: by parameter name of the ordinary model; the others stay.
        """
        adapted = {name: self.model.get_submodule(name) for name in self._ordinary}
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, module in self._ordinary.items():
                self.model.set_submodule(name, module)
            own = dict(self.model.named_parameters())
            for name, weight in weights.items():
                kept.append((own[name], own[name].data))
                own[name].data = weight.detach().to(own[name]).contiguous()
            yield self.model
        finally:
            for parameter, weight in kept:
                parameter.data = weight
            for name, module in adapted.items():
                self.model.set_submodule(name, module)


class Full(Adapter):
    """The weights themselves."""

    class Settings(AdapterSettings):
        name: Literal["full"] = "full"

    def __init__(self, settings: AdapterSettings, model: nn.Module, seed: int) -> None:
        super().__init__(settings, model, seed)
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.before = {name: weight.clone() for name, weight in self.merged().items()}

    def merged(self, weights: Tensors | None = None) -> Mapping[str, Tensor]:
        return {
            n: w.detach() for n, w in zip(self._names, self.parameters if weights is None else weights, strict=True)
        }


class LazyWeights(Mapping[str, Tensor]):
    """Tensors by name that are made when they are asked for, one at a time, and not kept."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
