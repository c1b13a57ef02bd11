"""OpenVINO's runner: few sizes, right rows, and memory given back while the weights' file is read."""

import pytest
import torch
from compiled_networks import AUDIO, Audio, audio_inputs, valid_rows

pytest.importorskip("openvino", reason="needs OpenVINO: pip install 'merfast[openvino]'")

from merfast.runtime import openvino


def test_sizes_are_few_and_little_is_added():
    sizes = range(1, 20_000)
    filled = [openvino.filled_up(n) for n in sizes]
    assert filled == sorted(filled)
    assert all(n <= f < 1.26 * n or f - n < 1 for n, f in zip(sizes, filled, strict=True))
    assert len({f for f in filled if 1024 < f <= 2048}) == 4
    assert openvino.filled_up(65_536) == 65_536


@pytest.mark.parametrize("lengths", [[64], [50], [65, 41], [37, 61, 12]])
def test_rows_are_right_whatever_is_filled_up(lengths, tmp_path):
    network = Audio().eval()
    runner = openvino.OpenVINORunner(openvino.convert(network, AUDIO, tmp_path), AUDIO, "fp32", 1)
    inputs = audio_inputs(lengths)
    with openvino.released(runner):
        got = runner(*inputs)
    assert got.shape[:2] == (len(lengths), openvino.filled_up(max(lengths)) // 4)
    with torch.no_grad():
        expected = network(*inputs)
    for ours, theirs in zip(valid_rows(got, lengths), valid_rows(expected, lengths), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    runner.relax()
    assert torch.equal(runner(*inputs), got)
