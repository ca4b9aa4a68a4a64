"""Saving and restoring the state of a run, so that a resumed run ends in the same bits."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor


class Stateful:
    """An object whose attributes named in `state` change during a run.

    Each may be a number, None, a tensor, a list of tensors or of lists of tensors, a random generator, or an object
    with a `state_dict` of its own. Everything else about the object follows from its settings.
    """

    state: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Any]:
        """A copy that later steps do not change; `torch.load(weights_only=True)` can read it."""
        return {name: _saved(getattr(self, name)) for name in self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`.

        Raises:
            ValueError: it is the state of another kind of object.
        """
        if saved.keys() != set(self.state):
            raise ValueError(
                f"{type(self).__name__} keeps {', '.join(self.state) or 'no state'}; this state has "
                f"{', '.join(saved) or 'nothing'}"
            )
        for name, value in saved.items():
            setattr(self, name, _restored(getattr(self, name), value))


def _saved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [_saved(item) for item in value]
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(value, "state_dict"):
        return copy.deepcopy(value.state_dict())
    return value


def _restored(now: Any, saved: Any) -> Any:
    """`saved` in the place of `now`. Tensors are written into their own storage, which others may share."""
    if isinstance(now, Tensor) and isinstance(saved, Tensor):
        with torch.no_grad():
            return now.copy_(saved)
    if isinstance(now, list) and isinstance(saved, list) and len(now) == len(saved):
        return [_restored(n, s) for n, s in zip(now, saved, strict=True)]
    if isinstance(now, torch.Generator):
        return now.set_state(saved.cpu())
    if hasattr(now, "load_state_dict"):
        now.load_state_dict(copy.deepcopy(saved))  # torch's optimizers keep using the tensors that they are given
        return now
    return _saved(saved)
