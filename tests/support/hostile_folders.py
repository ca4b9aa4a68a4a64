"""A small model's folder with everything that may be in one, and ways to spoil it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support.command import Output, regrade
from tests.support.language_model import seeded_llama

FEW = ("--task", "pocket", "--limit", "1", "--split", "test")
CONFIG, TOKENIZER, ADAPTER = "config.json", "tokenizer_config.json", "adapter_config.json"
WEIGHTS, VOCABULARY = "model.safetensors", "tokenizer.json"

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CANARY = "canary"
"""The file that the code in a folder would leave beside it."""

NAMES = """
AutoConfig AutoModel AutoModelForCausalLM AutoTokenizer AutoProcessor AutoModelForTextEncoding AutoModelForPreTraining
""".split()
AUTO_MAP = {name: ["evil.Evil", "evil.Evil"] if name == "AutoTokenizer" else "evil.Evil" for name in NAMES}


def model_folder(folder: Path, template: str | None = TEMPLATE, seed: int = 0, shards: bool = False) -> Path:
    """A Llama of ten thousand weights with a token for every byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = seeded_llama(seed, vocab_size=258, max_position_embeddings=512, **sizes)
    model.save_pretrained(folder, **({"max_shard_size": "10KB"} if shards else {}))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "<end>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def adapter_folder(folder: Path, base: Path, **settings: Any) -> Path:
    """A LoRA adapter of the model in another folder, with random weights."""
    from peft import LoraConfig, get_peft_model

    from suite.models.checkpoints import SavedCheckpoint

    model = SavedCheckpoint(base).model()
    model.name_or_path = str(base)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"], **settings}))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    return folder


def evaluated(folder: Path, tmp_path: Path, code: int = 0, *more: object) -> Output:
    """Evaluate a folder with the command, on a few questions."""
    return regrade("eval", folder, *FEW, "--store", tmp_path / "store", *more, code=code)


def copied(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def changed(file: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps(content))


def with_code(folder: Path) -> Path:
    """Python files that would leave the canary, under the names that libraries look for. Returns where it would be."""
    canary = folder / CANARY
    code = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
    for name in ("evil", "modeling", "configuration", "tokenization", "custom_generate/generate", "__init__"):
        file = folder / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    return canary


Spoil = Callable[[Path], object]


def setting(file: str, **values: Any) -> Spoil:
    return lambda folder: changed(folder / file, **values)


def content(file: str, written: bytes | str) -> Spoil:
    data = written.encode() if isinstance(written, str) else written
    return lambda folder: (folder / file).write_bytes(data)


def replaced(file: str, how: Callable[[Path], object]) -> Spoil:
    """Something else in the place of a file."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        how(folder / file)

    return spoil


def sparse(size: int) -> Callable[[Path], object]:
    def make(file: Path) -> None:
        with open(file, "wb") as stream:
            stream.truncate(size)

    return make


def safetensors(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A file with such a header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data
