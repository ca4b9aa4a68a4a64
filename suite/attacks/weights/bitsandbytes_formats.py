"""Quantization to bitsandbytes' formats by bitsandbytes itself, and back to ordinary weights.

This is what `load_in_4bit` and `load_in_8bit` of transformers do to the weights. LLM.int8() rounds activations as well,
which is left out here, so that the de-quantized weights run in any engine.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from types import ModuleType
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from suite.attacks.base import AttackContext, AttackSettings, Subject
from suite.attacks.weights.matrix_edit import MatrixEdit
from suite.config.errors import NotInstalledError
from suite.models.checkpoints import State
from tasks.task import Split, Task

S = TypeVar("S", bound=AttackSettings)


class LibraryFormat(MatrixEdit[S]):
    """Weights of linear layers, quantized and de-quantized by bitsandbytes."""

    def rounded(self, weight: Tensor, library: ModuleType) -> Tensor:
        """The weight rounded to the format's values, in its own dtype.

        Args:
            library: `bitsandbytes.functional`.
        """
        raise NotImplementedError

    def check(self, task: Task, split: Split) -> None:
        if find_spec("bitsandbytes") is None:
            raise NotInstalledError(
                f"attacks: {self.settings.name} is bitsandbytes' own, which is not installed: "
                "pip install 'regrade[bitsandbytes]'. Or use rtn"
            )

    def edited(self, state: State, subject: Subject, context: AttackContext) -> State:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of missing optional kernels on every CPU
        from bitsandbytes import functional

        return self.each(state, subject, context, lambda weight, _: self.rounded(weight.contiguous(), functional))


class FourBitSettings(AttackSettings):
    """blocksize: consecutive weights that share a scale. double: the scales have 8 bits themselves (QLoRA, Sec. 3).

    A block has 1,024 weights at most, because the library is less exact for larger blocks on some CPUs.
    """

    blocksize: Literal[32, 64, 128, 256, 512, 1024] = 64
    double: bool = False


class FourBit(LibraryFormat[FourBitSettings]):
    """Each weight rounded to the nearest of 16 values times the largest magnitude in its block."""

    kind: ClassVar[str]

    def rounded(self, weight: Tensor, library: ModuleType) -> Tensor:
        s = self.settings
        # A block per row: the library's CPU de-quantizer uses the wrong scale for blocks that cross the end of a row.
        flat = weight.flatten()
        blocks = torch.nn.functional.pad(flat, (0, -len(flat) % s.blocksize)).view(-1, s.blocksize)
        codes, state = library.quantize_4bit(
            blocks, blocksize=s.blocksize, compress_statistics=s.double, quant_type=self.kind
        )
        return library.dequantize_4bit(codes, state).flatten()[: len(flat)].view_as(weight)


class NF4(FourBit):
    """bitsandbytes' 4-bit NormalFloat: 16 values at a normal distribution's quantiles, times a block's largest."""

    source = "Dettmers et al. 2023, arXiv 2305.14314"
    kind = "nf4"

    class Settings(FourBitSettings):
        name: Literal["nf4"] = "nf4"


class FP4(FourBit):
    """bitsandbytes' 4-bit floating point, the default of `load_in_4bit`: 16 values times a block's largest."""

    source = "Zhang et al. 2024, arXiv 2410.16454"
    kind = "fp4"

    class Settings(FourBitSettings):
        name: Literal["fp4"] = "fp4"


class Int8(LibraryFormat["Int8.Settings"]):
    """bitsandbytes' LLM.int8() weights: 255 levels up to the largest weight of an output, after conversion to fp16."""

    source = "Dettmers et al. 2022, arXiv 2208.07339"

    class Settings(AttackSettings):
        name: Literal["int8"] = "int8"

    def rounded(self, weight: Tensor, library: ModuleType) -> Tensor:
        codes, largest, _ = library.int8_vectorwise_quant(weight.to(torch.float16))
        return library.int8_vectorwise_dequant(codes, largest).to(weight.dtype)
