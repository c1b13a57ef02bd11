"""Crops as the input of vision models: against transformers' own processors on Pillow."""

import numpy as np
import pytest
import torch
from tiny_checkpoints import COLOURS, PROCESSORS, image_processor

from merfast.models.pictures import Pictures


def faces(count, size, seed=0):
    """Noise on a gradient: edges, flat parts, and both ends of the range."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(-40, 295, size)[None, :, None, None]
    noise = generator.normal(0, 25, (count, size, size, 3))
    return torch.from_numpy((ramp + noise).clip(0, 255).astype(np.uint8))


def own(entries, crops):
    pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")
    processor = image_processor(entries)
    return torch.stack([torch.as_tensor(processor(c.numpy()).pixel_values[0]) for c in crops])


@pytest.mark.parametrize("kind", ["vit", "clip", "dinov2", "resnet"])
@pytest.mark.parametrize("size", [24, 32, 36, 57])
def test_pictures_are_those_of_transformers(kind, size):
    entries, crops = PROCESSORS[kind], faces(3, size)
    ours, theirs = Pictures(entries, size)(crops), own(entries, crops)
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-5  # a level is 0.014: resizing is the same to the bit
    assert torch.equal(Pictures(entries, size).float()(crops), ours)


def test_large_convnext_pictures_keep_their_rim():
    entries = PROCESSORS["resnet"] | {"size": {"shortest_edge": 384}}
    crops = faces(1, 32)
    ours, theirs = Pictures(entries, 32)(crops), own(entries, crops)
    assert ours.shape == theirs.shape == (1, 3, 384, 384)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["vit", "clip"])
@pytest.mark.parametrize("size", [30, 32])
def test_the_filter_is_skipped_where_it_gives_the_same(kind, size):
    entries, crops = PROCESSORS[kind], faces(2, size)
    pictures = Pictures(entries, size)
    skipped = not any(name == "rows" for name, _ in pictures.named_buffers())
    assert skipped == (size == 32)
    levels = Pictures(entries | {"do_rescale": False, "do_normalize": False}, size)(crops)
    assert torch.equal(levels, crops.permute(0, 3, 1, 2).float()) == skipped
    before = crops.clone()
    assert pictures(crops).is_contiguous()
    assert torch.equal(crops, before)


def test_switches():
    crops = faces(2, 32)
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    assert torch.equal(Pictures(off, 32)(crops), crops.permute(0, 3, 1, 2).float())
    halved = Pictures(off | {"do_rescale": True, "rescale_factor": 0.5}, 32)(crops)
    assert torch.equal(halved, crops.permute(0, 3, 1, 2) * 0.5)
    cut = Pictures(off | {"do_center_crop": True, "crop_size": 29}, 32)(crops)
    assert torch.equal(cut, crops.permute(0, 3, 1, 2).float()[:, :, 1:30, 1:30])


def test_entries_of_older_versions():
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32, "do_center_crop": True}
    new = PROCESSORS["dinov2"]
    crops = faces(2, 40)
    assert torch.equal(Pictures({"resample": 3, **COLOURS, **old}, 40)(crops), Pictures(new, 40)(crops))
    fast = PROCESSORS["vit"] | {"image_processor_type": "ViTImageProcessorFast", "do_pad": None, "crop_size": None}
    assert torch.equal(Pictures(fast, 40)(crops), Pictures(PROCESSORS["vit"], 40)(crops))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "SamImageProcessor"}, "got 'SamImageProcessor', expected one of ViTImageProcessor"),
        ({"do_pad": True}, "do_pad: got true"),
        ({"size": None}, "size: got None, expected pixels"),
        ({"size": {"longest_edge": 32}}, r"size: got \{'longest_edge': 32\}, expected pixels"),
        ({"size": {"height": 32, "width": 0}}, "size: got"),
        ({"size": 10**9}, "size: got 1000000000, expected pixels, .* up to 2048"),
        ({"size": True}, "size: got True"),
        ({"resample": 1}, r"resample: got 1, expected 2 \(bilinear\) or 3 \(bicubic\)"),
        ({"resample": None}, "resample: got None"),
        ({"do_center_crop": True, "crop_size": 40}, r"crop_size: got \(40, 40\) of pictures of \(32, 32\)"),
        ({"rescale_factor": 0}, "rescale_factor: got 0, expected a number above 0"),
        ({"image_mean": [0.5]}, r"image_mean: got \[0.5\], expected three numbers"),
        ({"image_std": [1, 0, 1]}, "image_std: got .*, expected numbers above 0"),
        ({"image_processor_type": "ConvNextImageProcessor", "crop_pct": 1.5}, "crop_pct: got 1.5"),
    ],
)
def test_entries_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Pictures(PROCESSORS["vit"] | changes, 32)
