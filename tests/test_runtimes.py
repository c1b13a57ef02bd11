"""Networks of foundation models in ONNX Runtime and OpenVINO, against the same networks in torch.

Budgets are errors over the largest value. That of bf16 and int8 is twice the error of torch's own bf16 network (int8
has as many significant bits as bf16), and a floor.
"""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import AUDIO, CONFIGS, make, processor_of
from torch import Tensor, nn

from merfast import compiled
from merfast.errors import BundleError, ConfigError, UnavailableError
from merfast.models.checkpoints import Checkpoint
from merfast.models.foundation import foundation
from merfast.runtime import onnx, openvino, ort
from merfast.runtime.spec import Spec

for module in ("transformers", "onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(module, reason="needs pip install 'merfast[transformers,onnx,openvino]'")

LAYERS = 2
CASES = [(name, "last") for name in CONFIGS] + [("hubert", "afg"), ("vit", 1)]
RUNTIMES = ("onnxruntime fp32", "onnxruntime int8", "openvino fp32", "openvino bf16")
LENGTHS = [4_000, 40, 3_000, 777, 41]  # samples: the first one fills the batch, 40 give one vector
EXACT, FLOOR = 5e-6, 5e-3


@dataclass(frozen=True)
class Case:
    """A network with everything made from it.

    Attributes:
        network: in torch, fp32.
        expected: the valid rows that it gives for `inputs`.
        rounded: largest difference in bf16, over the largest value.
        folder: holds a folder for each runtime and precision.
    """

    network: Any
    inputs: tuple[Tensor, ...]
    expected: Tensor
    rounded: float
    folder: Path

    @property
    def spec(self) -> Spec:
        return self.network.spec

    def rows(self, out: Tensor) -> Tensor:
        if len(self.inputs) == 1:
            return out
        return torch.cat([v[: self.network.frames(n)] for v, n in zip(out, LENGTHS, strict=True)])

    def runner(self, runtime: str, folder: Path | None = None) -> Any:
        place, (library, precision) = folder or self.folder / runtime, runtime.split()
        if library == "openvino":
            return openvino.OpenVINORunner(place / openvino.MODEL_FILE, self.spec, precision, 2)
        return ort.OrtRunner(place / onnx.MODEL_FILE, self.spec, 2)

    def error(self, out: Tensor) -> float:
        return float((self.rows(out) - self.expected).abs().max() / self.expected.abs().max())


def network_of(name: str, layer: str | int) -> nn.Module:
    modality, changes = "audio" if name in AUDIO else "video", {} if name == "resnet" else {"num_hidden_layers": LAYERS}
    checkpoint = Checkpoint(modality, make(name, **changes), processor_of(name))
    encoder = foundation(32, checkpoint=checkpoint, modality=modality, crop_size=40, layer=layer).eval()
    if layer == "afg":
        nn.init.normal_(encoder.network.layers.score)
    return encoder.network


def made(folder: Path, name: str, layer: str | int) -> Case:
    """The network, traced once, in all runtimes."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = network_of(name, layer)
    if name in AUDIO:
        inputs = (torch.randn(len(LENGTHS), max(LENGTHS), generator=generator), torch.tensor(LENGTHS))
    else:
        inputs = (torch.randn(3, 3, *network.size, generator=generator),)
    with torch.inference_mode():
        case = Case(network, inputs, torch.empty(0), 0.0, folder)
        case = Case(network, inputs, case.rows(network(*inputs)), 0.0, folder)
        case = Case(network, inputs, case.expected, case.error(copy.deepcopy(network).bfloat16()(*inputs)), folder)
    compiled._freeze(network)
    for runtime in RUNTIMES:
        (folder / runtime).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        program = onnx.exported(network, network.spec)
        patch.setattr(onnx, "exported", lambda *_: program)
        patch.setattr(openvino, "exported", lambda *_: program)
        onnx.quantise(onnx.export(network, network.spec, folder / RUNTIMES[0]), folder / RUNTIMES[1])
        openvino.convert(network, network.spec, folder / RUNTIMES[2])
        import openvino as library

        models = [library.Core().read_model(folder / RUNTIMES[2] / openvino.MODEL_FILE)]
        patch.setattr(library, "convert_model", lambda _: models[0])  # half of the time goes there
        openvino.convert(network, network.spec, folder / RUNTIMES[3], half=True)
    return case


@pytest.fixture(scope="session")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    @cache
    def case_of(name: str, layer: str | int) -> Case:
        return made(tmp_path_factory.mktemp(f"{name}-{layer}"), name, layer)

    return lambda name, layer="last": case_of(name, layer)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("name", "layer"), CASES)
def test_vectors_are_those_of_torch(case_of: Callable[..., Case], name: str, layer: str | int, runtime: str) -> None:
    case = case_of(name, layer)
    out = case.runner(runtime)(*case.inputs)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    exact = runtime.endswith("fp32") or (name == "resnet" and runtime.endswith("int8"))  # convolutions are not rounded
    error, budget = case.error(out), EXACT if exact else 2 * case.rounded + FLOOR
    assert error <= budget
    assert exact or error > 1e-4  # else it ran in fp32


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_sizes_vary(case_of: Callable[..., Case], runtime: str) -> None:
    """One row, one vector, many rows, in any order, on one runner; what follows a row's length may be any number."""
    audio, pictures = case_of("hubert"), case_of("vit")
    run, see = audio.runner(runtime), pictures.runner(runtime)
    exact = runtime.endswith("fp32")
    generator = torch.Generator().manual_seed(2)
    for rows, length in ((1, 40), (9, 200), (1, 16_000), (2, 41), (1, 40)):
        samples = torch.randn(rows, length, generator=generator)
        lengths = torch.full((rows,), length)
        lengths[-1] = 40
        samples[-1, 40:] = 1e4
        with torch.inference_mode():
            want, got = audio.network(samples, lengths), run(samples, lengths)
        assert got.shape[::2] == want.shape[::2]
        assert got.shape[1] >= want.shape[1]  # some fill lengths up
        for w, g, n in zip(want, got, lengths.tolist(), strict=True):
            t = audio.network.frames(n)
            assert (w[:t] - g[:t]).abs().max() <= (1e-5 if exact else 0.2) * w[:t].abs().max()
    for count in (1, 8, 3):
        pixels = torch.randn(count, 3, 32, 32, generator=generator)
        with torch.inference_mode():
            want = pictures.network(pixels)
        assert (want - see(pixels)).abs().max() <= (1e-5 if exact else 0.2) * want.abs().max()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wrong_inputs_are_named(case_of: Callable[..., Case], runtime: str) -> None:
    case = case_of("hubert")
    samples, lengths = case.inputs
    run = case.runner(runtime)
    for inputs, message in (
        ((samples,), "got 1 inputs, expected 2"),
        ((samples.double(), lengths), "input 'samples': got torch.float64 [5, 4000], expected torch.float32 [batch"),
        ((samples[0], lengths), "input 'samples': got torch.float32 [4000], expected"),
        ((samples, lengths.int()), "input 'lengths': got torch.int32 [5], expected torch.int64 [batch]"),
        ((samples, lengths[:2]), "input 'lengths': got torch.int64 [2], expected torch.int64 [batch]"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            run(*inputs)
    assert case.error(run(samples.t().contiguous().t(), lengths)) < 0.2  # any strides will do


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_two_threads_at_once(case_of: Callable[..., Case], runtime: str) -> None:
    case = case_of("hubert")
    run = case.runner(runtime)
    batches = [tuple(x[i : i + 1] for x in case.inputs) for i in range(5)]
    expected = [run(*b).clone() for b in batches]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda i: (i % 5, run(*batches[i % 5])), range(60)))
    assert all(torch.equal(out, expected[i]) for i, out in results)


def test_results_outlive_the_next_call(case_of: Callable[..., Case]) -> None:
    for runtime in RUNTIMES:
        case = case_of("vit")
        run = case.runner(runtime)
        first = run(*case.inputs)
        before = first.clone()
        run(torch.zeros_like(case.inputs[0]))
        assert torch.equal(first, before)


@pytest.mark.parametrize("runtime", ["openvino fp32", "openvino bf16"])
def test_giving_memory_back_changes_nothing(case_of: Callable[..., Case], runtime: str) -> None:
    case = case_of("hubert")
    run = case.runner(runtime)
    first, smaller = run(*case.inputs), run(*(x[:2] for x in case.inputs))
    for give in (run.relax, run.release, run.relax):
        give()
        assert torch.equal(run(*case.inputs), first)
        give()
        assert torch.equal(run(*(x[:2] for x in case.inputs)), smaller)
    with ThreadPoolExecutor(2) as pool:  # while another thread is at work
        results = [pool.submit(run, *case.inputs) for _ in range(20)]
        for _ in range(10):
            run.relax()
            run.release()
        assert all(torch.equal(r.result(), first) for r in results)


RELEASE = """
import sys
from pathlib import Path
import torch
from merfast.runtime.openvino import OpenVINORunner
from merfast.runtime.spec import Input, Spec

def mapped(file):
    lines, total, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total / 1024

file = Path(sys.argv[1])
run = OpenVINORunner(file, Spec((Input("pixels", torch.float32, ("pictures", 3, 32, 32)),), "vectors",
                                {"pictures": 1}), "fp32", 2)
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
first = run(x)
before = mapped(file.with_name("network.bin"))
run.release()
after = mapped(file.with_name("network.bin"))
assert torch.equal(run(x), first)
print(before, after, mapped(file.with_name("network.bin")))
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_the_pages_of_the_weights_are_given_back(tmp_path: Path) -> None:
    """Weights of 50 MB, in a process of its own: after the first run they are not read again."""
    model = make("vit", hidden_size=512, intermediate_size=2048, num_hidden_layers=4)
    checkpoint = Checkpoint("video", model, processor_of("vit"))
    network = foundation(512, checkpoint=checkpoint, modality="video", crop_size=32).network
    file = openvino.convert(network, network.spec, tmp_path)
    size = (tmp_path / "network.bin").stat().st_size / 2**20
    assert size > 48
    command = [sys.executable, "-c", RELEASE, str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    before, after, later = map(float, done.stdout.split())
    assert before > 0.5 * size
    assert after < 0.02 * size
    assert later < 0.1 * size


def test_weights_in_half_the_space(case_of: Callable[..., Case], tmp_path: Path) -> None:
    case = case_of("vit")
    openvino.convert(case.network, case.spec, tmp_path, half=True)
    whole, half = (case.folder / f"openvino {p}" / "network.bin" for p in ("fp32", "bf16"))
    assert half.stat().st_size == (tmp_path / "network.bin").stat().st_size
    assert 1.8 < whole.stat().st_size / half.stat().st_size < 2.2
    large = copy.deepcopy(case.network)
    nn.init.constant_(large.model.layernorm.weight, 1e5)  # more than fp16 has
    assert not openvino._fits_half(large)
    assert openvino._fits_half(case.network)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "weights cut": ("openvino fp32", lambda f: cut(f / "network.bin")),
    "no weights": ("openvino fp32", lambda f: (f / "network.bin").unlink()),
    "empty weights": ("openvino fp32", lambda f: (f / "network.bin").write_bytes(b"")),
    "graph cut": ("openvino fp32", lambda f: cut(f / "network.xml")),
    "another text": ("openvino fp32", lambda f: (f / "network.xml").write_text("<p>not a network</p>")),
    "noise": ("openvino fp32", lambda f: (f / "network.xml").write_bytes(bytes(range(256)) * 9)),
    "no graph": ("openvino fp32", lambda f: (f / "network.xml").unlink()),
    "data cut": ("onnxruntime fp32", lambda f: cut(f / "network.onnx.data")),
    "no data": ("onnxruntime fp32", lambda f: (f / "network.onnx.data").unlink()),
    "model cut": ("onnxruntime fp32", lambda f: cut(f / "network.onnx")),
    "int8 cut": ("onnxruntime int8", lambda f: cut(f / "network.onnx")),
    "no model": ("onnxruntime fp32", lambda f: (f / "network.onnx").unlink()),
    "empty model": ("onnxruntime fp32", lambda f: (f / "network.onnx").write_bytes(b"")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files(case_of: Callable[..., Case], tmp_path: Path, damage: str) -> None:
    runtime, harm = DAMAGE[damage]
    folder = shutil.copytree(case_of("vit").folder / runtime, tmp_path / "copy")
    case_of("vit").runner(runtime, folder)
    harm(folder)
    name = "OpenVINO" if runtime.startswith("openvino") else "ONNX Runtime"
    with pytest.raises(BundleError, match=rf"^{folder}/network\.\w+: {name} cannot read it: ") as raised:
        case_of("vit").runner(runtime, folder)
    assert "\n" not in str(raised.value)


def test_what_is_not_installed(case_of: Callable[..., Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, find = case_of("vit"), __import__("importlib.util").util.find_spec

    def lacks(*names: str) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n in names else find(n, *a))

    assert [m.missing() for m in (openvino, ort, onnx)] == ["", "", ""]
    lacks("openvino")
    sentence = r"^openvino is not installed, pip install 'merfast\[openvino\]'$"
    for attempt in (
        lambda: case.runner("openvino fp32"),
        lambda: openvino.convert(case.network, case.spec, tmp_path),
    ):
        with pytest.raises(UnavailableError, match=sentence):
            attempt()
    lacks("onnxruntime")
    with pytest.raises(UnavailableError, match=r"^onnxruntime is not installed, pip install 'merfast\[onnx\]'$"):
        case.runner("onnxruntime fp32")
    for names, said in ((["onnx", "onnxscript"], "onnx and onnxscript"), (["onnxscript"], "onnxscript")):
        lacks(*names)
        with pytest.raises(UnavailableError, match=rf"^exporting needs {said}, pip install 'merfast\[onnx\]'$"):
            onnx.export(case.network, case.spec, tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(UnavailableError, match=r"^int8 needs onnxruntime and onnx, pip install 'merfast\[onnx\]'$"):
        onnx.quantise(case.folder / RUNTIMES[0] / onnx.MODEL_FILE, tmp_path)
    assert list(tmp_path.iterdir()) == []
