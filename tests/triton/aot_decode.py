"""Variants of joint decoding that are compiled ahead of time."""

import torch
from aot import Case

from merfast.ops.decode_triton import DEPTH, HIDDEN, ROWS, WARPS, decode_kernel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZES = ("B", "D", "M", "C", "S")
ARRAYS = ("z", "emotion", "hidden", "given", "units", "classes", "scalars", "posterior", "valence")


def case(name: str, dtype: str, scaled: bool) -> Case:
    """One dtype of z, weights and results; the rest is fp32."""
    fp32 = ("units", "classes", "scalars")
    return Case(
        name,
        decode_kernel,
        {a: "*fp32" if a in fp32 else f"*{dtype}" for a in ARRAYS}
        | dict.fromkeys(SIZES, "i32")
        | {"temperature": "fp32", "limit": "fp32"},
        {"ROWS": ROWS, "BD": DEPTH, "BM": HIDDEN, "BC": 16, "SCALED": scaled, "F32": dtype == "fp32"},
        aligned=(*ARRAYS, "D", "M"),
        num_warps=WARPS[DTYPES[dtype]],
        num_stages=3,
        tensor_cores=dtype != "fp32",
    )


CASES = [case(f"{dtype}{' scaled' * scaled}", dtype, scaled) for dtype in DTYPES for scaled in (False, True)]
