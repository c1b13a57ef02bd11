"""Joint decoding against its formulas, sample by sample."""

import math

import pytest
import torch

from merfast.models.decoding import CLASS_VALENCE, JointDecoder
from merfast.ops.decode import decode, decode_structures
from merfast.types import EMOTIONS

S, B, D, M = 3, 5, 12, 7


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    module = JointDecoder(S, D, M).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


def one(z, weights, s):
    """p_s and v_s of one vector, as the contract writes them."""
    logits = [
        float(row @ z) + float(c) for row, c in zip(weights.emotion_weight[s], weights.emotion_bias[s], strict=True)
    ]
    total = sum(math.exp(x) for x in logits)
    p = torch.tensor([math.exp(x) / total for x in logits], dtype=torch.float64)
    v = float(weights.valence_bias[s]) + float(p @ weights.class_valence[s])
    joint = torch.cat([z, p])
    for row, bias, out in zip(weights.hidden_weight[s], weights.hidden_bias[s], weights.valence_weight[s], strict=True):
        x = float(row @ joint) + float(bias)
        v += float(out) * 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    return logits, p, v


def test_against_the_formulas(decoder):
    z = torch.randn(S, B, D, dtype=torch.float64)
    mix = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    with torch.no_grad():
        each = decoder(z)
        posterior, valence = decode(z, decoder.weights, mix)
        for b in range(B):
            logits, ps, vs = zip(*(one(z[s, b], decoder.weights, s) for s in range(S)), strict=True)
            for s in range(S):
                assert each.logits[s, b].tolist() == pytest.approx(logits[s], abs=1e-10)
                assert each.posterior[s, b].tolist() == pytest.approx(ps[s].tolist(), abs=1e-12)
                assert float(each.valence[s, b]) == pytest.approx(vs[s], abs=1e-10)
            expected = sum(m * p for m, p in zip(mix, ps, strict=True))
            assert posterior[b].tolist() == pytest.approx(expected.tolist(), abs=1e-12)
            assert float(valence[b]) == pytest.approx(float(mix @ torch.tensor(vs, dtype=torch.float64)), abs=1e-10)


def test_fp32_stays_close_to_fp64(decoder):
    z = torch.randn(S, B, D, dtype=torch.float64)
    with torch.no_grad():
        exact = decoder(z)
        rounded = decoder.float()(z.float())
    assert (exact.posterior - rounded.posterior).abs().max() < 1e-5
    assert (exact.valence - rounded.valence).abs().max() < 1e-4


def test_large_logits_do_not_overflow(decoder):
    with torch.no_grad():
        each = decoder(torch.full((S, 1, D), 1e4, dtype=torch.float64))
    assert each.posterior.isfinite().all()
    assert each.posterior.sum(-1).tolist() == [[pytest.approx(1.0)]] * S


@pytest.mark.parametrize("shape", [(S, D), (S + 1, B, D), (S, B, D + 1)])
def test_wrong_vectors_are_named(decoder, shape):
    with pytest.raises(ValueError, match=r"decode z: got .*expected \[3, B, 12\]"):
        decode_structures(torch.zeros(shape, dtype=torch.float64), decoder.weights)


def test_wrong_mix_is_named(decoder):
    with pytest.raises(ValueError, match=r"decode mix: got \[2\], expected \[3\]"):
        decode(torch.zeros(S, B, D, dtype=torch.float64), decoder.weights, torch.ones(2, dtype=torch.float64))


def test_temperature_and_limit(decoder):
    z = torch.randn(S, B, D, dtype=torch.float64)
    mix = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    with torch.no_grad():
        plain, valence = decode(z, decoder.weights, mix)
        same, clamped = decode(z, decoder.weights, mix, 1.0, 0.25)
        sharp, _ = decode(z, decoder.weights, mix, 0.5)
    assert torch.equal(same, plain)
    assert valence.abs().max() > 0.25
    assert torch.equal(clamped, valence.clamp(-0.25, 0.25))
    torch.testing.assert_close(sharp, plain**2 / (plain**2).sum(1, keepdim=True))


def test_mu_starts_at_the_class_means():
    assert JointDecoder(2, D, M).class_valence.tolist() == [list(CLASS_VALENCE)] * 2
    means = [0.0, -1.0, 1.0, -1.5, -0.5, 0.25]
    assert JointDecoder(1, D, M, means).class_valence.tolist() == [means]
    with pytest.raises(ValueError, match="class_valence: got 2 numbers, expected 6"):
        JointDecoder(1, D, M, [0.0, 1.0])


def test_placeholder_valences_have_the_sign_of_their_emotion():
    by_emotion = dict(zip(EMOTIONS, CLASS_VALENCE, strict=True))
    assert by_emotion["happy"] == max(CLASS_VALENCE) > 0 == by_emotion["neutral"]
    assert all(by_emotion[e] < 0 for e in ("angry", "sad", "worried"))
    assert all(-5 <= v <= 5 for v in CLASS_VALENCE)
