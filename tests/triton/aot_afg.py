"""Variants of the AFG kernel that the engine launches: the packaged bundle's, and those of foundation encoders."""

from __future__ import annotations

from typing import Any

import torch
from aot import Case

from merfast.ops import afg_triton

NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def case(
    name: str,
    dtype: str,
    dim: int,
    width: int,
    heads: int,
    gatherings: int,
    guided: int,
    split: bool,
    explain: bool = False,
) -> Case:
    """`guided` has bit p set where gathering p has a guide, which is as wide as its rows."""
    options: dict[str, Any] = afg_triton.launch_options(dim, width, heads, NAMES[dtype])
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    pointer = "*" + dtype
    signature: dict[str, Any] = {
        "xs": (pointer,) * gatherings,
        "offsets": ("*i64",) * gatherings,
        "guides": (pointer,) * gatherings,
        **dict.fromkeys(("weight", "guide_weight"), pointer),
        **dict.fromkeys(("bias", "score", "absent"), "*fp32"),
        "out": pointer,
        **dict.fromkeys(("partial", "state"), "*fp32"),
        "done": "*i32",
        **({"attentions": ("*fp32",) * gatherings} if explain else {}),
        **dict.fromkeys(("sets", "splits"), "i32"),
    }
    constants = {
        "P": gatherings,
        "D": dim,
        "A": width,
        "H": heads,
        "G": dim if guided else 0,
        "GUIDED": guided,
        "SPLIT": split,
        "UPCAST": False,
        **({} if explain else {"attentions": None}),
        **options,
    }
    pointers = ("weight", "guide_weight", "bias", "score", "absent", "out", "partial", "state", "done")
    return Case(name, afg_triton.gather_kernel, signature, constants, pointers, warps, stages, dtype != "fp32")


CASES = [
    case("mini, six of a stage", "fp32", 128, 64, 4, 6, 0, False),
    case("mini, bf16", "bf16", 128, 64, 4, 6, 0, False),
    case("mini, guided", "bf16", 128, 64, 4, 3, 0b110, False),
    case("D=1024, A=128, split", "bf16", 1024, 128, 4, 1, 0, True),
    case("D=1024, A=256, split", "fp16", 1024, 256, 4, 1, 0, True),
    case("D=1024, A=128, fp32", "fp32", 1024, 128, 4, 1, 0, True),
    case("odd widths", "bf16", 300, 100, 3, 1, 1, True),
    case("mini, attention", "fp32", 128, 64, 4, 6, 0, False, explain=True),
    case("mini, guided, attention", "fp32", 128, 64, 4, 3, 0b110, True, explain=True),
    case("D=1024, A=128, split, attention", "bf16", 1024, 128, 4, 1, 0, True, explain=True),
    case("odd widths, attention", "bf16", 300, 100, 3, 1, 1, True, explain=True),
]
