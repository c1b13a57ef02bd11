"""Variants of the crop kernel that `aot.py` compiles."""

from __future__ import annotations

from aot import Case

from merfast.ops.crop_norm_triton import BLOCK, crop_norm_kernel

POINTERS = {"p_y": "*u8", "p_u": "*u8", "p_v": "*u8", "p_boxes": "*fp32", "p_frame": "*i64", "p_colour": "*fp32"}
NUMBERS = ("height", "width", "stride_y_frame", "stride_y_row", "stride_c_frame", "stride_c_row", "stride_c_column")


def case(out: str, frames: bool) -> Case:
    constants = {"BYTES": out == "*u8", "FRAMES": frames, "BLOCK": BLOCK}
    signature = {**POINTERS, "p_out": out, **dict.fromkeys((*NUMBERS, "rows", "columns"), "i32")}
    name = f"{out[1:]}{' many frames' if frames else ''}"
    return Case(name, crop_norm_kernel, signature, constants, aligned=("p_boxes", "p_colour", "p_out"))


CASES = [case(out, frames) for out in ("*u8", "*fp32", "*bf16", "*fp16") for frames in (False, True)]
