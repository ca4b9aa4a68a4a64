"""The model that a spec names beside a target of one's own: it has to be the target's, or be left out."""

from __future__ import annotations

from suite.config.errors import UnsuitableError
from suite.models.config_file import read_config
from suite.models.named_folder import architecture_folder
from suite.spec.trial import TrialSpec

SIZES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
"""What two checkpoints of one model have in common, among other things."""


def check_named_model(spec: TrialSpec) -> None:
    """Check that `model` describes the same model as `anchors.target`, which is the one that is read.

    Raises:
        UnsuitableError: it is another one.
    """
    target, name = spec.anchors.target, spec.model.name
    if not target or name == target:
        return
    config = read_config(architecture_folder(target, "anchors.target")).get_text_config()
    tiny = spec.model.tiny
    wanted = (
        {
            "model_type": "llama",
            "hidden_size": tiny.hidden,
            "num_hidden_layers": tiny.layers,
            "num_attention_heads": tiny.heads,
            "max_position_embeddings": tiny.context,
        }
        if name == "tiny"
        else vars_of(read_config(architecture_folder(name, "model.name")).get_text_config())
    )
    for size, value in wanted.items():
        if value != getattr(config, size, None):
            raise UnsuitableError(
                f"model.name: {name} has {size}={value}, and anchors.target ({target}) has "
                f"{getattr(config, size, None)}. Leave model.name out: then the target's own folder is the model"
            )


def vars_of(config: object) -> dict[str, object]:
    """The sizes that a config has."""
    return {size: getattr(config, size) for size in SIZES if hasattr(config, size)}
