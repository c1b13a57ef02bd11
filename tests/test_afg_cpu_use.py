"""What `merfast.ops.afg_cpu` and its binding accept, route and refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_afg import BAD, make
from test_afg_cpu import BF16, bits, cast, dtype_of, kernel_of, run
from torch import Tensor

from merfast import _C
from merfast.errors import UnavailableError
from merfast.ops import afg_cpu
from merfast.ops.afg import AFGWeights, Gathering

F = np.float32


def single(weights: AFGWeights) -> AFGWeights:
    return cast((weights.bias, weights.bias, weights, None), torch.float32)[2]


def call_of(x: Tensor, offsets: Tensor, _: AFGWeights, guide: Tensor | None) -> Gathering:
    return Gathering(x.float(), offsets, None if guide is None else guide.float())


@pytest.mark.parametrize("isa", ["auto", "generic", BF16])
def test_group_is_one_call_of_the_kernel(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtype = dtype_of(isa)
    x, offsets, weights, guide = cast(make([3, 0, 5], 12, 7, 2, 4), dtype)
    name = "AfgBf16Kernel" if dtype == torch.bfloat16 else "AfgKernel"
    original = getattr(_C, name)
    seen: list[tuple[str, int]] = []

    class Recorded:
        def __init__(self, *arguments: Any) -> None:
            self.kernel = original(*arguments)

        def run(self, calls: Any, threads: int) -> None:
            seen.append((self.kernel.isa, len(calls)))
            self.kernel.run(calls, threads)

    monkeypatch.setattr(_C, name, Recorded)
    outs = afg_cpu.prepare_group([weights] * 3, isa=isa)([Gathering(x, offsets, guide)] * 3)
    monkeypatch.undo()
    assert seen == [(afg_cpu.isas(dtype)[0] if isa == "auto" else isa, 3)]
    expected = run(kernel_of(weights, isa), x, offsets, guide)
    assert len(outs) == 3
    assert all(out.dtype == dtype and torch.equal(out, expected) for out in outs)


def test_isas() -> None:
    assert afg_cpu.isas()[-1] == "generic"
    assert afg_cpu.isas(torch.bfloat16) in ((), ("avx512bf16",))
    with pytest.raises(ValueError, match=r"got torch.float16, expected torch.float32 or torch.bfloat16"):
        afg_cpu.isas(torch.float16)


@pytest.mark.parametrize("isa", ["generic", BF16])
def test_what_autograd_and_views_give_is_taken(isa: str) -> None:
    x, offsets, weights, _ = cast(make([3, 5], 12, 7, 2), dtype_of(isa))
    leaves = AFGWeights(*[w if w is None else w.clone().requires_grad_() for w in weights])
    gather = afg_cpu.prepare(leaves, isa=isa)
    plain = gather(x, offsets, None)
    assert not plain.requires_grad
    assert torch.equal(gather(x.clone().requires_grad_(), offsets, None), plain)
    assert torch.equal(gather(x.T.contiguous().T, offsets, None), plain)


@pytest.mark.parametrize("case", BAD)
def test_prepare_refuses_what_the_reference_refuses(case: str) -> None:
    inputs, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        afg_cpu.prepare(single(inputs[2]))(*call_of(*inputs))


@pytest.mark.parametrize("case", BAD)
def test_group_refuses_a_bad_gathering_beside_a_good_one(case: str) -> None:
    inputs, message = BAD[case]
    good = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match=message):
        afg_cpu.prepare_group([single(good[2]), single(inputs[2])])([call_of(*good), call_of(*inputs)])


def test_group_refuses_another_number_of_gatherings() -> None:
    x, offsets, weights, _ = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match="afg: got 2 gatherings, expected 1"):
        afg_cpu.prepare_group([single(weights)])([Gathering(x.float(), offsets)] * 2)
    with pytest.raises(ValueError, match="afg: got 0 gatherings, expected 1"):
        kernel_of(single(weights), "auto").run([], 1)
    with pytest.raises(ValueError, match="afg weights: got none, expected those of at least one gathering"):
        afg_cpu.prepare_group([])


def test_prepare_refuses_other_types_and_kernels() -> None:
    x, offsets, weights, _ = make([3], 4, 3, 2)
    with pytest.raises(ValueError, match=r"got torch.float64, expected torch.float32 or torch.bfloat16"):
        afg_cpu.prepare(weights)
    for name in ("bias", "score", "absent"):
        mixed = single(weights)._replace(**{name: getattr(weights, name)})
        with pytest.raises(ValueError, match=rf"afg {name}: got torch.float64 on cpu, expected torch.float32 on cpu"):
            afg_cpu.prepare(mixed)
    with pytest.raises(ValueError, match=r"afg x: got torch.float64 on cpu, expected torch.float32 on cpu"):
        afg_cpu.prepare(single(weights))(x, offsets, None)
    with pytest.raises(ValueError, match="afg threads: got 0, expected at least 1"):
        afg_cpu.prepare(single(weights), threads=0)
    with pytest.raises(UnavailableError, match=r"float32: got isa 'neon', expected auto, .*generic"):
        afg_cpu.prepare(single(weights), isa="neon")


@pytest.mark.parametrize("isa", [BF16])
def test_bf16_kernel_takes_bf16_only(isa: str) -> None:
    x, offsets, weights, guide = make([3], 4, 3, 2, 5)
    lower = cast((x, offsets, weights, guide), torch.bfloat16)
    gather = afg_cpu.prepare(lower[2], isa=isa)
    with pytest.raises(ValueError, match=r"afg x: got torch.float32 on cpu, expected torch.bfloat16 on cpu"):
        gather(*call_of(x, offsets, weights, guide))
    with pytest.raises(ValueError, match=r"afg guide: got torch.float64 on cpu, expected torch.bfloat16 on cpu"):
        gather(lower[0], offsets, guide)
    with pytest.raises(ValueError, match=r"afg weight: got torch.float32 on cpu, expected torch.bfloat16 on cpu"):
        afg_cpu.prepare_group([lower[2], single(weights)])
    with pytest.raises(UnavailableError, match=r"bfloat16: got isa 'avx2', expected auto, avx512bf16"):
        afg_cpu.prepare(lower[2], isa="avx2")
    with pytest.raises(ValueError, match=r"isa: got 'avx2', expected auto, avx512bf16"):
        kernel_of(lower[2], "avx2")
    with pytest.raises(ValueError, match=r"afg x: got float32 \[3, 4\], expected uint16 \[3, 4\]"):
        kernel_of(lower[2], isa).run(
            [(x.float().numpy(), offsets.numpy(), bits(lower[3]), bits(lower[0][:1]), None)], 1
        )


def test_bf16_without_the_processor_for_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "isas", lambda bf16: [] if bf16 else ["avx2", "generic"])
    weights = cast(make([1], 4, 3, 2), torch.bfloat16)[2]
    for isa in ("auto", "avx512bf16", "avx2"):
        with pytest.raises(UnavailableError, match=r"bfloat16: got a CPU without AVX512_BF16"):
            afg_cpu.prepare(weights, isa=isa)


def test_without_the_extension_use_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(afg_cpu, "_missing", ImportError("No module named 'merfast._C'"))
    for use in (afg_cpu.isas, lambda: afg_cpu.prepare(single(make([1], 4, 3, 2)[2]))):
        with pytest.raises(UnavailableError, match=r"got No module .*, expected merfast\._C"):
            use()


BINDING: dict[str, tuple[dict[str, Any], str]] = {
    "x-rank": ({"x": np.zeros(4, F)}, r"x: got 1 dimensions, expected 2"),
    "x-width": ({"x": np.zeros((3, 5), F)}, r"x: got float32 \[3, 5\], expected float32 \[3, 4\]"),
    "x-dtype": ({"x": np.zeros((3, 4))}, r"x: got float64 \[3, 4\], expected float32 \[3, 4\]"),
    "x-strides": ({"x": np.zeros((4, 3), F).T}, r"x: got non-contiguous or unaligned float32 \[3, 4\]"),
    "offsets-dtype": ({"offsets": np.array([0, 2, 3], np.int32)}, r"offsets: got int32 \[3\], expected int64 \[3\]"),
    "offsets-none": ({"offsets": np.zeros(0, np.int64)}, r"offsets: got int64 \[0\], expected int64 \[B \+ 1\]"),
    "offsets-falling": (
        {"offsets": np.array([0, 4, 3])},
        r"got 0 \.\.\. 3, expected to rise from 0 to at most 3",
    ),
    "offsets-end": ({"offsets": np.array([0, 2, 4])}, r"offsets: got 0 \.\.\. 4, expected to rise from 0 to at most 3"),
    "guide-missing": ({"guide": None}, r"guide: got guide=False with guide_weight=True"),
    "guide-shape": ({"guide": np.zeros((2, 6), F)}, r"guide: got float32 \[2, 6\], expected float32 \[2, 5\]"),
    "guide-rows": ({"guide": np.zeros((1, 5), F)}, r"guide: got float32 \[1, 5\], expected float32 \[2, 5\]"),
    "out-shape": ({"out": np.zeros((3, 4), F)}, r"out: got float32 \[3, 4\], expected float32 \[2, 4\]"),
    "attention-shape": (
        {"attention": np.zeros((3, 4), F)},
        r"attention: got float32 \[3, 4\], expected float32 \[3, 2\]",
    ),
    "attention-dtype": ({"attention": np.zeros((3, 2))}, r"attention: got float64 \[3, 2\], expected float32 \[3, 2\]"),
    "attention-strides": ({"attention": np.zeros((2, 3), F).T}, r"attention: got non-contiguous or unaligned float32"),
    "threads": ({"threads": 0}, r"threads: got 0, expected at least 1"),
}


@pytest.mark.parametrize("case", BINDING)
def test_binding_refuses(case: str) -> None:
    change, message = BINDING[case]
    _, _, weights, _ = make([3], 4, 3, 2, 5)
    arguments: dict[str, Any] = {
        "x": np.zeros((3, 4), F),
        "offsets": np.array([0, 2, 3]),
        "guide": np.zeros((2, 5), F),
        "out": np.zeros((2, 4), F),
        "attention": np.zeros((3, 2), F),
        "threads": 1,
    }
    kernel = kernel_of(single(weights), "auto")

    def use(threads: int, **call: Any) -> None:
        kernel.run([tuple(call.values())], threads)

    use(**arguments)
    with pytest.raises(ValueError, match=message):
        use(**(arguments | change))


def test_binding_refuses_a_read_only_output_and_bad_weights() -> None:
    _, _, weights, _ = make([3], 4, 3, 2)
    out, attention = np.zeros((1, 4), F), np.zeros((3, 2), F)
    kernel = kernel_of(single(weights), "auto")
    for array, name in ((attention, "attention"), (out, "out")):
        array.flags.writeable = False
        with pytest.raises(ValueError, match=f"{name}: got a read-only array"):
            kernel.run([(np.zeros((3, 4), F), np.array([0, 3]), None, out, attention)], 1)
    with pytest.raises(ValueError, match=r"isa: got 'neon', expected auto, .*generic"):
        kernel_of(single(weights), "neon")
    with pytest.raises(ValueError, match=r"bias: got float32 \[4\], expected float32 \[3\]"):
        kernel_of(single(weights)._replace(bias=torch.zeros(4)), "auto")
    with pytest.raises(ValueError, match="got width 4 and 3 heads, expected a multiple"):
        kernel_of(single(weights)._replace(score=torch.zeros(3, 3)), "auto")
