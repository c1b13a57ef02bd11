"""The steps from labelled clips to a bundle that the engine runs, each by its command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from media_files import write_wav

import merfast
from merfast.types import EMOTIONS
from training import clips, evaluate, export, features, make_untrained, train
from training.data import DataError
from training.recipe import Recipe, read_recipe
from training.strict import build

RECIPES = Path(__file__).parent.parent / "training" / "recipes"
RECIPE = """
name = "tiny"
kind = "manifest"
seed = 1

[[streams]]
name = "voice"
modality = "audio"
encoder = "logmel"
dim = 128

[[streams]]
name = "face"
modality = "video"
encoder = "facecnn"
dim = 192
options = { widths = [8, 8] }

[encoders.voice]
source = "BUNDLE"
[encoders.face]
source = "BUNDLE"

[preprocessing]
crop_size = 48

[features]
detector = "haar"

[fusion]
dim = 16
attention_dim = 8
heads = 2
valence_dim = 8

[train]
batch = 8
noisy = 0.1
feature_noise = 0.02
frame_dropout = 0.1
drop_audio = 0.0
drop_video = 0.0

[train.schedule]
epochs = 25
lr = 1e-2
patience = 25
"""
TONES = (200, 500, 900, 1500, 2500, 4000)  # Hz, one for each emotion


def tone(frequency: float, seed: int, seconds: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(int(16000 * seconds)) / 16000
    wave = np.sin(2 * np.pi * frequency * rng.uniform(0.98, 1.02) * t) + 0.1 * rng.normal(size=len(t))
    return (0.2 * wave).astype(np.float32)


def write_clips(folder: Path, rows: list[tuple[str, ...]] | None = None) -> None:
    """Speakers 0 to 5, each with a tone for every emotion; and a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for speaker in range(6):
        split = {4: "val", 5: "test"}.get(speaker, "train")
        for e, emotion in enumerate(EMOTIONS):
            name = f"{speaker}_{emotion}.wav"
            write_wav(folder / name, tone(TONES[e], 10 * speaker + e))
            made.append((name, emotion, str(e - 2.5), f"s{speaker}", split))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([("file", "emotion", "valence", "speaker", "split"), *made, *(rows or [])])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose encoders come from an untrained bundle."""
    root = tmp_path_factory.mktemp("recipe")
    text = RECIPE.replace("BUNDLE", str(root / "bundle"))
    (root / "tiny.toml").write_text(text, encoding="utf-8")
    recipe = read_recipe(root / "tiny.toml")
    make_untrained.write(root / "bundle", config=recipe.bundle_config(name="untrained"))
    return root / "tiny.toml"


def step(main: object, recipe: Path, data: Path, work: Path, *more: str) -> int:
    return main([str(recipe), "--data", str(data), "--work", str(work), "--workers", "1", *more])  # type: ignore[operator]


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Working folder and bundle of a whole run."""
    root = tmp_path_factory.mktemp("run")
    write_clips(root / "data")
    for main in (features.main, train.main, evaluate.main):
        assert step(main, tiny, root / "data", root / "work") == 0
    assert step(export.main, tiny, root / "data", root / "work", "--out", str(root / "bundle")) == 0
    return root / "work", root / "bundle"


def test_the_bundle_predicts_what_was_scored(made: tuple[Path, Path], tiny: Path) -> None:
    work, bundle = made
    scores = json.loads((work / "report" / "scores.json").read_text())
    test = scores["sets"]["test"]["audio+video"]
    assert test["n"] == 6
    assert test["weighted_f1"] > 0.6  # chance is a sixth: tones are told apart
    engine = merfast.Engine(bundle, detector="none")  # warns if it is marked untrained, which is an error here
    files = [work.parent / "data" / f"5_{e}.wav" for e in EMOTIONS]
    predictions = engine.predict(files)
    right = np.mean([p.emotion == e for p, e in zip(predictions, EMOTIONS, strict=True)])
    assert right == pytest.approx(test["accuracy"], abs=1e-3)
    valence = np.mean([(p.valence - (e - 2.5)) ** 2 for e, p in enumerate(predictions)])
    assert valence == pytest.approx(test["mse"], abs=2e-3)  # features are kept in half precision
    config = engine.bundle.config
    assert config.fusion.temperature == pytest.approx(scores["temperature"], abs=1e-4)
    assert config.fusion.temperature != 1.0
    assert config.metrics["sets"] == scores["sets"]
    assert config.provenance["seed"] == 1


def test_the_report_can_be_read(made: tuple[Path, Path]) -> None:
    work, bundle = made
    report = work / "report"
    names = {f.name for f in report.iterdir()}
    assert names >= {"scores.json", "scores.md", "confusion-test.png", "reliability-test.png", "curves-whole.png"}
    text = (report / "scores.md").read_text()
    for expected in ("| test", "| test, noise", "audio only", "hierarchical", "weighted F1", "worried"):
        assert expected in text
    card = (bundle / "README.md").read_text()
    assert text.strip() in card


def test_again_is_the_same_to_the_byte(made: tuple[Path, Path], tiny: Path, tmp_path: Path) -> None:
    work, bundle = made
    data = work.parent / "data"
    for main in (features.main, train.main, evaluate.main):
        assert step(main, tiny, data, tmp_path / "work") == 0
    assert step(export.main, tiny, data, tmp_path / "work", "--out", str(tmp_path / "bundle")) == 0
    assert (tmp_path / "bundle" / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()
    again = json.loads((tmp_path / "work" / "report" / "scores.json").read_text())
    assert again == json.loads((work / "report" / "scores.json").read_text())


def test_ablations_have_a_row_each(made: tuple[Path, Path], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, _ = made
    assert step(evaluate.main, tiny, work.parent / "data", work, "--ablations") == 0
    rows = json.loads((work / "report" / "scores.json").read_text())["ablations"]
    names = [row["variant"] for row in rows]
    assert names[:3] == ["structure: flat", "structure: hierarchical", "structure: guided"]
    assert any("parallel" in n for n in names)
    assert any("fixed" in n for n in names)
    assert any("mean pooling" in n for n in names)
    assert any("audio streams alone" in n for n in names)
    assert all(0 <= row["weighted F1"] <= 1 for row in rows)
    assert "Ablations" in capsys.readouterr().out


def test_folds_are_scored_by_who_has_not_seen_them(tiny: Path, tmp_path: Path) -> None:
    write_clips(tmp_path / "data")
    text = tiny.read_text().replace("[train]\n", "[clips]\nfolds = 2\n[train]\n").replace("epochs = 25", "epochs = 3")
    (tmp_path / "folds.toml").write_text(text)
    for main in (features.main, train.main, evaluate.main):
        assert step(main, tmp_path / "folds.toml", tmp_path / "data", tmp_path / "work") == 0
    scores = json.loads((tmp_path / "work" / "report" / "scores.json").read_text())
    assert scores["sets"]["folds"]["audio+video"]["n"] == 24  # speakers 0 to 3
    assert scores["sets"]["test"]["audio+video"]["n"] == 6
    out = tmp_path / "bundle"
    assert step(export.main, tmp_path / "folds.toml", tmp_path / "data", tmp_path / "work", "--out", str(out)) == 0
    assert json.loads((out / "config.json").read_text())["provenance"]["part"] in ("fold0", "fold1")


def test_unreadable_clips_are_named_and_left_out(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "data", [("bad.mp4", "sad", "", "s0", "train"), ("gone.mp4", "sad", "", "s0", "train")])
    (tmp_path / "data" / "bad.mp4").write_bytes(b"not a video" * 99)
    assert step(features.main, tiny, tmp_path / "data", tmp_path / "work") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "gone.mp4" in said
    assert "bad.mp4" in said
    short = tmp_path / "short.toml"
    short.write_text(tiny.read_text().replace("epochs = 25", "epochs = 1"))
    assert step(train.main, short, tmp_path / "data", tmp_path / "work") == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("0_sad.wav", "gloomy", "", "", "train"), "got 'gloomy', expected one of neutral, angry"),
        (("x.wav", "sad", "7", "s0", "train"), "expected -5 to 5"),
        (("x.wav", "sad", "", "s5", "train"), "s5"),
    ],
)
def test_bad_labels_end_the_step(
    tiny: Path, tmp_path: Path, row: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "data", [row])
    write_wav(tmp_path / "data" / "x.wav", tone(300, 0))
    assert step(features.main, tiny, tmp_path / "data", tmp_path / "work") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_steps_out_of_order_say_which_comes_first(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clips(tmp_path / "data")
    assert step(export.main, tiny, tmp_path / "data", tmp_path / "work", "--out", str(tmp_path / "out")) == 1
    assert "run training.evaluate first" in capsys.readouterr().err
    assert step(train.main, tiny, tmp_path / "data", tmp_path / "work") == 1
    assert "error: " in capsys.readouterr().err


def test_a_damaged_feature_is_named_by_training(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "data")
    assert step(features.main, tiny, tmp_path / "data", tmp_path / "work") == 0
    for entry in (tmp_path / "work" / "features").rglob("*.safetensors"):
        entry.write_bytes(entry.read_bytes()[:-3])
    capsys.readouterr()
    assert step(train.main, tiny, tmp_path / "data", tmp_path / "work") == 1
    error = capsys.readouterr().err
    assert "damaged features" in error
    assert "run training.features again" in error
    assert step(features.main, tiny, tmp_path / "data", tmp_path / "work") == 0
    assert "made anew" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*.toml")), ids=lambda f: f.stem)
def test_the_recipes_that_come_along_can_be_read(file: Path) -> None:
    recipe = read_recipe(file)
    assert recipe.streams
    assert recipe.bundle_config().name == recipe.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = 'a'", "got no kind"),
        ("name = 'a'\nkind = 'video'", "recipe kind: got 'video', expected one of composites"),
        ("name = 'a'\nkind = 'manifest'\nlearning_rate = 1", "got unknown keys learning_rate, expected of name, kind"),
        ("name = 'a'\nkind = 'manifest'\n[train]\nbatch = 'many'", r"train\.batch: got 'many', expected int"),
        ("name = 'a'\nkind = 'manifest'\n[train.schedule]\nlr = 0.0", "schedule: expected"),
        ("name = 'a'\nkind = 'manifest'\nseed = true", "seed: got True, expected int"),
        ("name = [", "not TOML"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_tables_become_what_they_say() -> None:
    recipe = build(
        Recipe,
        {
            "name": "a",
            "kind": "composites",
            "streams": [{"name": "voice", "modality": "audio", "encoder": "logmel", "dim": 128}],
            "encoders": {"voice": {"source": "x"}},
            "composites": {"motion": {"turn": 3}, "val_speakers": ["a", "b"]},
            "features": {"train_corruption": {"snr": [1, 2.5]}},
        },
        "recipe",
    )
    assert recipe.composites.motion.turn == 3.0
    assert recipe.composites.val_speakers == ("a", "b")
    assert recipe.features.train_corruption.snr == (1.0, 2.5)
    assert recipe.encoders["voice"].source == "x"
    assert recipe.streams[0].dim == 128


def test_pretrained_encoders_are_fused(tiny: Path, tmp_path: Path, face_clip: Path) -> None:
    """Streams from a checkpoint and from a created bundle, from labelled clips to a bundle that predicts."""
    pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")
    import tiny_checkpoints

    from merfast.create import create

    tiny_checkpoints.write(tmp_path / "hubert", "hubert")
    create(tmp_path / "vit", video=[tiny_checkpoints.write(tmp_path / "checkpoint", "vit")])
    write_clips(tmp_path / "data", [(str(face_clip), "happy", "3", "s5", "test")])
    head, _, tail = tiny.read_text().partition("[[streams]]")
    streams = [
        f'[[streams]]\nname = "{name}"\nmodality = "{modality}"\nencoder = "transformers"\ndim = 32\n'
        for name, modality in (("hubert", "audio"), ("vit", "video"))
    ]
    sources = [f'[encoders.{name}]\nsource = "{tmp_path / name}"\n' for name in ("hubert", "vit")]
    rest = "[preprocessing]" + tail.partition("[preprocessing]")[2].replace("epochs = 25", "epochs = 2")
    (tmp_path / "recipe.toml").write_text("\n".join([head, *streams, *sources, rest]))
    arguments = (tmp_path / "recipe.toml", tmp_path / "data", tmp_path / "work")
    for main in (features.main, train.main, evaluate.main):
        assert step(main, *arguments) == 0
    assert step(export.main, *arguments, "--out", str(tmp_path / "bundle")) == 0
    assert (tmp_path / "bundle" / "encoders" / "hubert" / "model.safetensors").exists()
    (prediction,) = merfast.Engine(tmp_path / "bundle", detector="haar").predict([face_clip])
    assert prediction.modalities == ("audio", "video")
    scores = json.loads((tmp_path / "work" / "report" / "scores.json").read_text())
    assert scores["sets"]["test"]["video only"]["n"] == 1
    assert scores["sets"]["test"]["audio only"]["n"] == 7


def test_a_stream_without_a_source_is_named(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clips(tmp_path / "data")
    text = tiny.read_text().replace('encoder = "logmel"', 'encoder = "transformers"').replace("[encoders.voice]", "[x]")
    (tmp_path / "a.toml").write_text(text)
    assert step(features.main, tmp_path / "a.toml", tmp_path / "data", tmp_path / "work") == 1
    assert "got unknown keys x" in capsys.readouterr().err
    text = text.partition("[x]")[0] + "[preprocessing]" + text.partition("[preprocessing]")[2]
    (tmp_path / "a.toml").write_text(text)
    assert step(features.main, tmp_path / "a.toml", tmp_path / "data", tmp_path / "work") == 1
    assert "recipe encoders.voice.source: got none, expected a folder or a hub id" in capsys.readouterr().err


def test_clips_are_tabled(
    made: tuple[Path, Path], face_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "face.mp4").write_bytes(face_clip.read_bytes())
    (folder / "bad.mp4").write_bytes(b"not a clip" * 50)
    bundle = tmp_path / "bundle"
    shutil.copytree(made[1], bundle)
    for _ in range(2):  # the second time replaces what the first has put there
        assert clips.main([str(bundle), str(folder), "--out", str(tmp_path / "out"), "--card"]) == 0
    card = (bundle / "README.md").read_text()
    assert card.startswith((made[1] / "README.md").read_text().rstrip())
    assert card.count("## Real clips") == card.count("face.mp4") == 1
    capsys.readouterr()
    assert clips.main([str(bundle), str(folder), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "clips.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    bad, face = (next(line for line in text.splitlines() if name in line) for name in ("bad.mp4", "face.mp4"))
    assert "cannot be read" in bad
    assert "audio+video" in face
    assert "1 clips, 1 emotions among them" in text
    assert (tmp_path / "out" / "crops.png").stat().st_size > 5000
    assert clips.main([str(made[1]), str(tmp_path / "out"), "--out", str(tmp_path / "out")]) == 1
    assert "got no clips" in capsys.readouterr().err


def test_change_is_total_variation() -> None:
    def prediction(*p: float) -> merfast.Prediction:
        return merfast.Prediction("x", 0.0, 1.0, "neutral", np.array(p, np.float32), 0.0, ("audio",), 0.0)

    a, b = prediction(1, 0, 0, 0, 0, 0), prediction(0.25, 0.5, 0.25, 0, 0, 0)
    assert clips.changed(a, b) == pytest.approx(0.75)
    assert clips.changed(a, a) == 0.0
