"""Layers of encoders: gathered as they come, none kept."""

import weakref

import pytest
import torch

from merfast.models.layers import Layers


def states(count, alive, asked):
    """Random states; `alive` has how many of them were there at a time, `asked` how many were made."""
    there = weakref.WeakSet()
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        state = torch.randn(2, 5, 8, generator=generator)
        there.add(state)
        alive.append(len(there))
        asked.append(1)
        yield state
        del state


@pytest.mark.parametrize("choice", ["last", "mean", "afg", 0, 3])
def test_no_more_than_one_state_is_kept(choice):
    layers, alive, asked = Layers(choice, 6, 8, 4), [], []
    with torch.inference_mode():
        out = layers(states(7, alive, asked))
    assert out.shape == (2, 5, 8)
    assert len(asked) == (choice + 1 if isinstance(choice, int) else 7)
    assert max(alive) <= 2  # one, and the next one that is being made


def test_energies_far_apart_do_not_overflow():
    layers = Layers("afg", 4, 8, 4)
    torch.nn.init.constant_(layers.score, 1e4)
    given = [torch.randn(3, 8) * 10**n for n in range(5)]
    with torch.inference_mode():
        out = layers(iter(given))
        energy = torch.stack([layers.energy(x) for x in given[1:]])
        expected = (torch.softmax(energy, 0) * torch.stack(given[1:])).sum(0)
    assert out.isfinite().all()
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_gathering_has_gradients():
    layers = Layers("afg", 3, 8, 4)
    torch.nn.init.normal_(layers.score)
    layers(torch.randn(2, 8) for _ in range(4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.parameters())


def test_half_precision_is_summed_in_full():
    given = [torch.full((1, 8), 256.0).bfloat16()] + [torch.full((1, 8), 256.0 + n).bfloat16() for n in (0, 2, 4, 2)]
    out = Layers("mean", 4, 8)(iter(given))
    assert out.dtype == torch.float32
    assert torch.equal(out, torch.full((1, 8), 258.0))
