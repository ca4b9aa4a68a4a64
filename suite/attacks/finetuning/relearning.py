"""Relearning: fine-tune on a few of the forget texts and measure how much of the rest comes back.

Published settings of `samples`, the length, `lr` and `batch_size`:

| where | settings |
| --- | --- |
| WMDP, arXiv 2502.05374 | 20, 40 or 60 texts, 1 epoch, 1e-5, 4 |
| MUSE, arXiv 2502.05374 | 50, 75, 100 steps (Books) or 100, 125, 150 (News), 1e-5, 4; schedule=cosine |
| TOFU, arXiv 2506.12618 | the forget set, 1 epoch, 2e-5, 32 |
| WMDP, arXiv 2409.18025 | 5 to 1000 texts, 3 epochs, 2e-4, 1; adapter=lora, warmup=0.05, weight_decay=0.01 |
| arXiv 2410.08827 | texts=unasked or questions, the strongest of a grid of lr and epochs |

The last one trains on some facts and asks about the others, so that no answer is taught. The retrained model under the
same attack shows what facts of the same kind teach by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from suite.attacks.finetuning.base import FineTuning, FineTuningSettings


class Relearning(FineTuning["Relearning.Settings"]):
    """Fine-tuning on n of the forget texts with its own AdamW, measured at points along the way."""

    source = "Fan et al. 2025, arXiv 2502.05374"
    example: ClassVar[Mapping[str, Any]] = {"samples": 2, "steps": 2, "lr": 1e-3, "points": 2}

    class Settings(FineTuningSettings):
        name: Literal["relearn"] = "relearn"
