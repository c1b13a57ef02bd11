"""Crops on the CPU in C++: fp32 arithmetic, every vector width. The contract is `merfast.ops.crop_norm`."""

from __future__ import annotations

import torch
from torch import Tensor

from merfast.ops.afg_cpu import check_isa
from merfast.ops.crop_norm import LUMA, Crop, CropSpec, Planes, check_crop_norm, check_spec


def prepare(spec: CropSpec, *, isa: str = "auto") -> Crop:
    """The kernel for an instruction set. It may be called from many threads at once, and works on the caller's.

    Args:
        spec: what crops look like; bf16 and fp16 are made of fp32.
        isa: one of `merfast.ops.afg_cpu.isas()`, or "auto" for the first of them.

    Raises:
        UnavailableError: there is no such kernel here.
        ValueError: the spec or, on a call, arguments that `check_crop_norm` refuses or that are not on the CPU.
    """
    check_isa(isa)
    check_spec(spec)
    from merfast import _C

    (height, width), whole = spec.sides, spec.dtype == torch.uint8
    run = _C.CropNormKernel(height, width, whole, spec.mean, spec.std, isa).run

    def crop(planes: Planes, boxes: Tensor, frame: Tensor | None = None) -> Tensor:
        y, u, v, matrix, full_range = planes
        try:
            shape = (len(boxes), height, width, 3) if whole else (len(boxes), 3, height, width)
            out = torch.empty(shape, dtype=torch.uint8 if whole else torch.float32, device="cpu")
            # Whole numbers stay what they are, and are refused.
            corners = (boxes.to(torch.float64) if boxes.is_floating_point() else boxes).contiguous().numpy()
            numbers = None if frame is None else frame.contiguous().numpy()
            run(y.numpy(), u.numpy(), v.numpy(), *LUMA[matrix], full_range, corners, numbers, out.numpy())
        except (ValueError, TypeError, KeyError):
            # The binding found something wrong without costing the good case anything; say it as the reference does.
            check_crop_norm(planes, boxes, frame)
            for name, value in (("y", y), ("u", u), ("v", v), ("boxes", boxes), ("frame", frame)):
                if value is not None and value.device.type != "cpu":
                    raise ValueError(f"crop_norm {name}: got {value.device}, expected cpu") from None
            raise
        return out.to(spec.dtype)

    return crop
