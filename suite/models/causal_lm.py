"""The type of every model here: a causal language model of transformers. At run time there is no such class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    class CausalLM(PreTrainedModel):
        """What AutoModelForCausalLM makes. transformers types both of these as no methods of such a model."""

        def to(self, device: torch.device | str) -> CausalLM:  # type: ignore[override]  # theirs counts as no method
            ...

        def generate(self, **inputs: Any) -> torch.Tensor: ...
