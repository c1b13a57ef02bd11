"""Variants of the crop kernel that `aot.py` compiles."""

from __future__ import annotations

from aot import Case

from merfast.ops.crop_norm_triton import BLOCK, crop_norm_kernel

POINTERS = {"p_y": "*u8", "p_u": "*u8", "p_v": "*u8", "p_boxes": "*fp32", "p_frame": "*i64", "p_colour": "*fp32"}
NUMBERS = ("height", "width", "stride_y_frame", "stride_y_row", "stride_c_frame", "stride_c_row")


def case(name: str, out: str, size: int, column: int, frames: bool) -> Case:
    constants = {"SIZE": size, "BYTES": out == "*u8", "FRAMES": frames, "BLOCK": BLOCK}
    signature = {**POINTERS, "p_out": out, **dict.fromkeys(NUMBERS, "i32")}
    if column == 1:  # what a launch makes of an argument of 1
        constants["stride_c_column"] = 1
    else:
        signature["stride_c_column"] = "i32"
    return Case(name, crop_norm_kernel, signature, constants, aligned=("p_boxes", "p_colour", "p_out"))


CASES = [
    case(f"{surface} {out[1:]} {size}{' many frames' if frames else ''}", out, size, column, frames)
    for surface, column in (("planar", 1), ("nv12", 2))
    for out, size, frames in (("*u8", 48, False), ("*fp32", 48, True), ("*bf16", 224, True), ("*fp16", 224, False))
]
