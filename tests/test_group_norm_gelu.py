"""The eager masked GroupNorm with GELU, against torch sample by sample, and inside a HuBERT front-end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_checkpoints
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from merfast.ops.group_norm_gelu import group_norm_gelu, prepare


def make(lengths: list[int], frames: int, channels: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random fp64 x, lengths, weight and bias; beyond the lengths x is NaN."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x = draw(len(lengths), channels, frames) * (0.1 + draw(channels, 1).abs()) + draw(channels, 1)
    sizes = torch.tensor(lengths, dtype=torch.int64)
    x = x.masked_fill((torch.arange(frames) >= sizes[:, None])[:, None], math.nan)
    return x, sizes, draw(channels), draw(channels)


def one_by_one(x: Tensor, lengths: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """torch's own group_norm and gelu on each sample without its padding, in the dtype of x."""
    out = torch.zeros_like(x)
    for b, length in enumerate(lengths.tolist()):
        if length * x.shape[1] // groups == 1:  # torch refuses a group of one value, which is its own mean
            out[b, :, :1] = functional.gelu(bias)[:, None]
        elif length:
            out[b, :, :length] = functional.gelu(
                functional.group_norm(x[b : b + 1, :, :length], groups, weight, bias, eps)
            )[0]
    return out


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 5, 16, 40]), max_size=4),
    extra=st.integers(0, 9),
    groups=st.integers(1, 5),
    each=st.integers(1, 4),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_equals_torch_sample_by_sample(lengths: list[int], extra: int, groups: int, each: int, eps: float) -> None:
    x, sizes, weight, bias = make(lengths, max(lengths, default=0) + extra, groups * each)
    got = group_norm_gelu(x, sizes, weight, bias, groups, eps)
    torch.testing.assert_close(got, one_by_one(x, sizes, weight, bias, groups, eps), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_in_each_dtype(dtype: torch.dtype) -> None:
    x, sizes, weight, bias = make([300, 0, 1, 77], 300, 12)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    exact = one_by_one(x.double(), sizes, weight.double(), bias.double(), 12)
    got, eager = group_norm_gelu(x, sizes, weight, bias, 12), one_by_one(x, sizes, weight, bias, 12)
    assert got.dtype == dtype
    assert (got - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-6


def test_any_strides() -> None:
    x, sizes, weight, bias = make([9, 4], 9, 6)
    expected = group_norm_gelu(x, sizes, weight, bias, 3)
    for other in (x.mT.contiguous().mT, x.transpose(0, 1).contiguous().transpose(0, 1)):
        assert not other.is_contiguous()
        torch.testing.assert_close(group_norm_gelu(other, sizes, weight, bias, 3), expected)


def test_padding_gets_no_gradient_and_the_rest_does() -> None:
    x, sizes, weight, bias = make([5, 3, 0], 8, 4)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    group_norm_gelu(x, sizes, weight, bias, 2).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[0, :, 5:].any()
    assert (x.grad[0, :, :5] != 0).all()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("name", ["hubert", "wav2vec2"])
def test_hubert_base_front_end_with_padding(name: str) -> None:
    """Plain padding changes what the first layer makes of the audio before it; the masked op does not."""
    first = tiny_checkpoints.make(name).feature_extractor.conv_layers[0]
    norm = first.layer_norm
    assert isinstance(norm, torch.nn.GroupNorm)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0)
        norm.bias.uniform_(-0.5, 0.5)
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, generator=generator) for n in (1600, 1000)]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    with torch.inference_mode():
        alone = [first(clip[None, None])[0] for clip in clips]
        plain = first(padded[:, None])
        lengths = torch.tensor([a.shape[1] for a in alone])
        masked = group_norm_gelu(
            first.conv(padded[:, None]), lengths, norm.weight, norm.bias, norm.num_groups, norm.eps
        )
    assert lengths[0] > lengths[1]
    for b, expected in enumerate(alone):
        valid = expected.shape[1]
        torch.testing.assert_close(masked[b, :, :valid], expected, rtol=0, atol=2e-6)
        assert not masked[b, :, valid:].any()
    assert (plain[1, :, : lengths[1]] - alone[1]).abs().max() > 0.1


X, SIZES, WEIGHT, BIAS = (t.float() if t.is_floating_point() else t for t in make([3, 2], 4, 6))
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "x-rank": ({"x": X[0]}, r"group_norm_gelu x: got \[6, 4\], expected \[B, 6, T\]"),
    "x-channels": ({"x": X[:, :5]}, r"group_norm_gelu x: got \[2, 5, 4\], expected \[B, 6, T\]"),
    "bias": ({"bias": BIAS[:5]}, r"got weight \[6\], bias \[5\], expected \[C\], \[C\]"),
    "weight": ({"weight": X[0], "bias": X[0]}, r"got weight \[6, 4\], bias \[6, 4\], expected \[C\], \[C\]"),
    "groups": ({"groups": 4}, r"group_norm_gelu groups: got 4, expected a divisor of 6 channels"),
    "groups-none": ({"groups": 0}, r"group_norm_gelu groups: got 0, expected a divisor of 6 channels"),
    "eps": ({"eps": -1.0}, r"group_norm_gelu eps: got -1.0, expected"),
    "eps-nan": ({"eps": math.nan}, r"group_norm_gelu eps: got nan, expected"),
    "lengths-dtype": ({"lengths": SIZES.int()}, r"lengths: got torch.int32 \[2\], expected torch.int64 \[2\]"),
    "lengths-count": ({"lengths": SIZES[:1]}, r"lengths: got torch.int64 \[1\], expected torch.int64 \[2\]"),
    "lengths-over": ({"lengths": SIZES + 2}, r"lengths: got \[5, 4\]\.\.\., expected 0 to 4"),
    "lengths-under": ({"lengths": SIZES - 3}, r"lengths: got \[0, -1\]\.\.\., expected 0 to 4"),
}


def arguments_of(case: str) -> tuple[dict[str, Any], str]:
    """All arguments with one of them spoilt, and the message."""
    good = {"x": X, "lengths": SIZES, "weight": WEIGHT, "bias": BIAS, "groups": 3, "eps": 1e-5}
    return good | BAD[case][0], BAD[case][1]


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_say_got_and_expected(case: str) -> None:
    a, message = arguments_of(case)
    with pytest.raises(ValueError, match=message):
        prepare(a["weight"], a["bias"], a["groups"], a["eps"])(a["x"], a["lengths"])
