"""Weights of foundation models stay in their files: memory, what may happen to the files, and loading without them."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_checkpoints import CONFIGS, make, processor_of, write

from merfast import bundle
from merfast.create import create
from merfast.errors import BundleError, ConfigError
from merfast.files import check_values, read_tensors, replace_file
from merfast.models import checkpoints
from merfast.models.checkpoints import FAMILIES

pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")


def modality_of(name):
    return FAMILIES[CONFIGS[name][0]][0]


def mapped_from(file):
    """Address ranges of this process that are mapped from a file, all of them private and writable."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, rights, *_, name = line.split(maxsplit=5)
        if name.strip() == str(file):
            assert rights == "rw-p", line
            found.append(range(*(int(a, 16) for a in place.split("-"))))
    return found


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_lies_in_the_file(tmp_path, name):
    folder = write(tmp_path / "x", name)
    model = checkpoints.read(folder, modality_of(name)).model
    ranges = mapped_from(folder / "model.safetensors")
    assert ranges
    copied = [n for n, p in model.named_parameters() if not any(p.data_ptr() in r for r in ranges)]
    assert copied == []
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())  # none drags the others along


MEASURE = """
import sys
from pathlib import Path
from merfast.files import read_tensors
from merfast.models import checkpoints

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

small, large = map(Path, sys.argv[1:])
checkpoints.read(small, "video")  # whatever is needed once
before = anonymous()
model = checkpoints.read(large, "video").model
mapped = anonymous() - before
assert all(p.isfinite().all() for p in model.parameters())
copies = read_tensors(large / "model.safetensors")
print(mapped, anonymous() - before - mapped)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_takes_no_memory_of_its_own(tmp_path):
    """A checkpoint of 200 MB, in a process of its own; copies of it, for comparison, take what they must."""
    small = write(tmp_path / "small", "vit")
    large = write(tmp_path / "large", "vit", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    size = (large / "model.safetensors").stat().st_size / 2**20
    assert size > 190
    command = [sys.executable, "-c", MEASURE, str(small), str(large)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    mapped, copied = map(float, done.stdout.split())
    assert mapped < 0.1 * size
    assert copied > 0.9 * size


def test_training_does_not_write_to_the_file(tmp_path):
    folder = write(tmp_path / "x", "vit")
    before = (folder / "model.safetensors").read_bytes()
    model = checkpoints.read(folder, "video").model.train()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 3, 32, 32)).last_hidden_state.square().sum().backward()
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, start[name])]
    assert len(changed) > 20
    assert (folder / "model.safetensors").read_bytes() == before
    again = checkpoints.read(folder, "video").model
    assert all(torch.equal(p, start[name]) for name, p in again.named_parameters())


def test_saving_over_what_is_mapped(tmp_path):
    """A bundle may be written to where it was read from; others who have it open keep what they have."""
    made = create(tmp_path / "bundle", audio=[write(tmp_path / "hubert", "hubert")])
    mine, theirs = (bundle.load(made.path) for _ in range(2))
    weight = mine.model.encoders["hubert"].network.model.encoder.layer_norm.weight
    old = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(3)
    bundle.save(made.path, mine.config, mine.model)
    assert torch.equal(theirs.model.encoders["hubert"].network.model.encoder.layer_norm.weight, old)
    new = bundle.load(made.path).model.encoders["hubert"].network.model.encoder.layer_norm.weight
    assert torch.equal(new, torch.full_like(old, 3))


def test_a_replaced_file_leaves_the_mapping(tmp_path):
    file = tmp_path / "x.safetensors"
    replace_file(file, safetensors.torch.save({"x": torch.arange(100_000.0)}))
    tensor = read_tensors(file, mapped=True)["x"]
    replace_file(file, safetensors.torch.save({"x": torch.zeros(100_000)}))
    assert torch.equal(tensor, torch.arange(100_000.0))
    assert not read_tensors(file, mapped=True)["x"].any()


@pytest.mark.parametrize("mapped", [True, False])
def test_kinds_of_tensors(tmp_path, mapped):
    """All types and shapes, and data that start at an odd place, as the format allows."""
    tensors = {
        "half": torch.randn(3, 5).half(),
        "brain": torch.randn(7).bfloat16(),
        "number": torch.tensor(5),
        "scalar": torch.tensor(1.5),
        "none": torch.zeros(0, 4),
        "double": torch.randn(2, 3, 4).double(),
        "flags": torch.tensor([True, False]),
    }
    data = safetensors.torch.save(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    odd = data[8 : 8 + length].rstrip()
    odd += b" " * (1 + len(odd) % 2)
    for content in (data, struct.pack("<Q", len(odd)) + odd + data[8 + length :]):
        replace_file(tmp_path / "x.safetensors", content)
        read = read_tensors(tmp_path / "x.safetensors", mapped=mapped)
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor), name
            assert read[name].dtype == tensor.dtype
            assert read[name].data_ptr() % tensor.element_size() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_no_weight_has(value):
    tensor = torch.ones(3, 4)
    check_values(Path("f"), "x", tensor)
    check_values(Path("f"), "x", torch.zeros(0))
    tensor[1, 2] = value
    with pytest.raises(BundleError, match=r"^f: tensor 'x': got NaN or infinite values, expected finite ones$"):
        check_values(Path("f"), "x", tensor)


# Without the weights.


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    create(folder / "out", audio=[write(folder / "hubert", "hubert")], video=[write(folder / "vit", "vit")])
    return folder / "out"


def outlines(root, *names):
    """What is known of a bundle's checkpoints without their weights."""
    return {n: checkpoints.outline(bundle.encoder_folder(root, n), modality_of(n)) for n in names}


def test_loading_without_some_weights(two, tmp_path):
    for names in (["hubert"], ["hubert", "vit"]):
        loaded = bundle.load(two, described=outlines(two, *names))
        for name, encoder in loaded.model.foundations.items():
            assert all(p.is_meta == (name in names) for p in encoder.network.model.parameters()), name
        rest = [p for n, p in loaded.model.named_parameters() if not n.startswith("encoders.")]
        assert rest
        assert not any(p.is_meta for p in rest)
    assert not any(p.is_meta for p in bundle.load(two).model.parameters())
    with pytest.raises(BundleError, match=r"x: got streams without weights \(hubert, vit\), expected a bundle loaded"):
        bundle.save(tmp_path / "x", loaded.config, loaded.model)
    assert not (tmp_path / "x").exists()


def test_weights_left_out_are_not_looked_at(two, tmp_path):
    whole = bundle.load(two)
    bundle.save(tmp_path / "copy", whole.config, whole.model)
    folder = bundle.encoder_folder(tmp_path / "copy", "hubert")
    assert folder == tmp_path / "copy" / "encoders" / "hubert"
    known = outlines(two, "hubert")
    shutil.rmtree(folder)
    assert bundle.load(tmp_path / "copy", described=known).config == whole.config
    with pytest.raises(BundleError, match=r"encoders/hubert/config.json: missing$"):
        bundle.load(tmp_path / "copy")


def test_streams_that_cannot_be_left_out(two):
    known = outlines(two, "hubert")["hubert"]
    with pytest.raises(ConfigError, match=r"^described: got face, voice, expected of hubert, vit$"):
        bundle.load(two, described=dict.fromkeys(("voice", "hubert", "face"), known))
    with pytest.raises(
        ConfigError, match=r"^described: got voice, expected of none, the bundle has no foundation models$"
    ):
        bundle.load(described={"voice": known})
    with pytest.raises(BundleError, match=r"config stream '../x': name cannot be used"):
        bundle.encoder_folder(two, "../x")


def test_half_precision_is_read_as_fp32(tmp_path):
    make("vit").half().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor_of("vit")))
    model = checkpoints.read(tmp_path, "video").model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
