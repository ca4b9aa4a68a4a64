"""The transformers engine with the end-of-text token hidden from the model, as open-unlearning (arXiv 2506.12618) asks.

Its batches take the attention mask from `ids != pad`, and where a tokenizer has no padding token it pads with the
end-of-text token. That token is then hidden wherever a text has it: the ends of a chat's turns, a beginning of text
that is the same token. Log-probabilities are computed with the positions of the whole text; generated text, as
`model.generate` does it, with positions that do not count the hidden tokens.

The numbers are other numbers: the engine has a name of its own, and a board ranks what one engine measured. No shortcut
is taken, so it is several times as slow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch

from suite.config.settings import Settings as NamedSettings
from suite.engines.questions import Questions
from suite.engines.scores import Score, ScoreRequest, batches, score_plainly
from suite.engines.transformers.continuation import Continuation
from suite.engines.transformers.decoding import generated
from suite.engines.transformers.engine import TransformersEngine
from suite.engines.transformers.gradient_norms import gradient_norm
from suite.models.encoding import Encoded
from suite.models.layers import carries_state

if TYPE_CHECKING:
    from suite.models.causal_lm import CausalLM


class EosMaskedEngine(TransformersEngine):
    """transformers with the end-of-text token hidden from the model, as open-unlearning hides it where it pads."""

    class Settings(NamedSettings):
        name: Literal["transformers-eos-masked"] = "transformers-eos-masked"

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.name = f"transformers-{self.dtype}-eos-masked"

    def _likelihoods(
        self, model: CausalLM, requests: Sequence[ScoreRequest], gradient_texts: Sequence[Encoded]
    ) -> tuple[list[Score], list[float]]:
        scores = {i: Score((), ()) if not a.vocabulary else Score((), (), (), ()) for i, a in enumerate(requests)}
        asked = [i for i, a in enumerate(requests) if a.text.answer]
        with _hidden(model, self.encoder.eos):
            computed = score_plainly(model, [requests[i] for i in asked], self.batch_tokens)
            norms = [gradient_norm(model, text) for text in gradient_texts]
        return list((scores | dict(zip(asked, computed, strict=True))).values()), norms

    def _continuations(self, model: CausalLM, questions: Questions) -> list[list[int] | None]:
        requests, found = questions.generation_requests, dict[int, Continuation]()
        # A layer that carries a state sees padding, whatever the mask says.
        limit = 0 if carries_state(model) else self.batch_tokens
        for batch in batches([request.longest for request in requests], limit):
            texts = generated(model, [requests[i] for i in batch], self.encoder.ends, hidden=self.encoder.eos)
            found.update(zip(batch, texts, strict=True))
        return [found[i].sound for i in range(len(requests))]


@contextmanager
def _hidden(model: CausalLM, token: int) -> Iterator[None]:
    """Every pass over whole texts masks the token."""

    def masked(_: torch.nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        return args, {**inputs, "attention_mask": (inputs["input_ids"] != token).long()}

    handle = model.register_forward_pre_hook(masked, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
