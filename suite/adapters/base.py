"""The base class of adapters: the parameters that are trained, and how they are merged into ordinary weights.

Whatever is trained, an ordinary model is exported: engines, attacks and other people's code never see an adapter. The
training model keeps its adapter unmerged, so an export in the middle of a run changes nothing about the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor, nn

from suite.config import settings
from suite.oracle.base import Tensors

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class AdapterSettings(settings.Settings):
    """Settings that every adapter has: a name, a literal in those of each one that is registered."""

    name: str = ""


S = TypeVar("S", bound=AdapterSettings)


class Adapter(Generic[S]):
    """What is trained instead of the weights. Creating it inserts it into the model, in place, and freezes the rest.

    Args:
        model: an ordinary causal language model; only its trainable parameters may change.
        seed: seed of the adapter's initial values.

    Attributes:
        before: the ordinary weights that it changes, by parameter name, as they were when it was created.
    """

    Settings: type[S]
    source: ClassVar[str] = ""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings with which it does all that it does within six steps on a small model. Tests make it with them."""

    before: dict[str, Tensor]

    def __init__(self, settings: S, model: CausalLM, seed: int) -> None:
        self.settings = settings
        self.model = model
        self._ordinary: Mapping[str, nn.Module] = {}
        """Modules that the adapter replaces, by name."""

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, in the order of the oracle's parameters."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def merged(self, weights: Tensors | None = None) -> Mapping[str, Tensor]:
        """The ordinary weights that it changes, by name, not yet rounded to the model's dtype.

        Args:
            weights: values to use instead of `parameters`, shaped like them (e.g. their average).
        """
        raise NotImplementedError

    @contextmanager
    def exported(self, weights: Mapping[str, Tensor]) -> Iterator[CausalLM]:
        """The model as an ordinary one with these weights, rounded once; on exit it is restored bit for bit.

        Args:
            weights: by parameter name of the ordinary model; the others stay as they are.
        """
        adapted = {name: self.model.get_submodule(name) for name in self._ordinary}
        replaced: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for name, module in self._ordinary.items():
                self.model.set_submodule(name, module)
            parameters_by_name = dict(self.model.named_parameters())
            for name, weight in weights.items():
                replaced.append((parameters_by_name[name], parameters_by_name[name].data))
                parameters_by_name[name].data = weight.detach().to(parameters_by_name[name]).contiguous()
            yield self.model
        finally:
            for parameter, weight in replaced:
                parameter.data = weight
            for name, module in adapted.items():
                self.model.set_submodule(name, module)


class Full(Adapter["Full.Settings"]):
    """The weights themselves."""

    class Settings(AdapterSettings):
        name: Literal["full"] = "full"

    def __init__(self, settings: Settings, model: CausalLM, seed: int) -> None:
        super().__init__(settings, model, seed)
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.before = {name: weight.clone() for name, weight in self.merged().items()}

    def merged(self, weights: Tensors | None = None) -> Mapping[str, Tensor]:
        return {
            n: w.detach() for n, w in zip(self._names, self.parameters if weights is None else weights, strict=True)
        }


class LazyWeights(Mapping[str, Tensor]):
    """A mapping from names to tensors that computes each tensor when it is accessed, and does not store it."""

    def __init__(self, names: Iterable[str], compute: Callable[[str], Tensor]) -> None:
        self._names = dict.fromkeys(names)
        self._compute = compute

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
