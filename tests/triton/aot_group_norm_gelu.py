"""Variants of masked GroupNorm with GELU that are compiled ahead of time."""

from aot import Case

from merfast.ops.group_norm_gelu_triton import group_norm_gelu_kernel, launch_options

POINTERS = ("x", "lengths", "weight", "bias", "out")


def case(dtype: str, frames: int, channels: int) -> Case:
    """One dtype of x and the result, and one length of rows."""
    options = launch_options(frames, channels)
    return Case(
        f"{dtype} {frames} x {channels}",
        group_norm_gelu_kernel,
        {"x": f"*{dtype}", "lengths": "*i64", "weight": "*fp32", "bias": "*fp32", "out": f"*{dtype}"}
        | dict.fromkeys(("T", "G", "K"), "i32")
        | {"eps": "fp32"},
        {name: options[name] for name in ("BT", "WHOLE")},
        aligned=POINTERS,
        num_warps=options["num_warps"],
    )


CASES = [
    case(dtype, frames, channels)
    for dtype in ("fp32", "bf16", "fp16")
    for frames, channels in ((100, 1), (1000, 1), (4000, 1), (12_799, 1), (51_199, 1), (1000, 16))
]
