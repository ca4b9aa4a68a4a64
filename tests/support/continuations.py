"""Decodes prompts with the engine, and with `model.generate` one at a time."""

from __future__ import annotations

import torch

from suite.engines.transformers.decoding import GenerationRequest, continued
from suite.engines.transformers.shortcut import Shortcut

CLOSE = 1e-4
EOS = 7
"""Any token: these models generate each about once in 40."""
PROMPTS = [(1, 2, 3), (1, 2, 4, 5, 6, 1, 1), (1,), (9,), (1, 2, 3, 8, 8), (30, 31), (1, 2), (9, 9, 9, 9), (12, 3)]


@torch.inference_mode()
def one_by_one(model, request: GenerationRequest, eos: int = EOS) -> list[int]:
    ids = torch.tensor([request.prompt])
    new = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.limit,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=eos,
    )[0, len(request.prompt) :].tolist()
    return new[: new.index(eos)] if eos in new else new


def same(model, request: GenerationRequest, mine: list[int], theirs: list[int]) -> bool:
    """Equal up to the first step whose two best logits are closer than `CLOSE`."""
    for step, (a, b) in enumerate(zip([*mine, EOS], [*theirs, EOS], strict=False)):
        if a != b:
            with torch.no_grad():
                best = model(torch.tensor([[*request.prompt, *theirs[:step]]])).logits[0, -1].topk(2).values
            return float(best[0] - best[1]) < CLOSE
    return len(mine) == len(theirs)


def run(model, requests, batch_tokens: int = 64, decoding: Shortcut | None = None, eos: int = EOS):
    with torch.inference_mode():
        return continued(
            model, requests, ends={eos}, row_tokens=16, batch_tokens=batch_tokens, decoding=decoding or Shortcut()
        )
