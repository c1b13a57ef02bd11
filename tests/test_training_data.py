"""Readers of labelled data: what they give, what they leave out and say so, and what they refuse."""

import hashlib
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from merfast.types import EMOTIONS
from training.data import DataError, Sample, check, check_disjoint, emotion_index, valence_number
from training.manifest import VideoFile, folds, read_manifest, read_table, split_speakers
from training.mer2023 import read_mer2023


def sample(name="a.mp4", emotion=0, valence=None, speaker=None, split="train", groups=()):
    return Sample(name, VideoFile(Path(name)), emotion, valence, speaker, split, groups)


def said(error):
    return str(error.value)


# data.py


def test_a_sample_keeps_valence_within_its_limits():
    assert sample(valence=5.0).valence == 5.0
    assert sample(valence=-5.0).valence == -5.0


@pytest.mark.parametrize("valence", [5.01, -6.0, math.nan, math.inf])
def test_a_sample_refuses_other_valence(valence):
    with pytest.raises(DataError, match=r"^a\.mp4: valence: got .*, expected -5 to 5$"):
        sample(valence=valence)


def test_a_sample_has_a_split():
    with pytest.raises(DataError, match=r"^a\.mp4: split: got an empty name$"):
        sample(split="")


def test_emotion_index_follows_the_six():
    assert [emotion_index("a", label) for label in EMOTIONS] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"^a: emotion: got 'fear', expected one of neutral, angry, .*surprise$"):
        emotion_index("a", "fear")
    with pytest.raises(DataError, match="got 'Happy'"):
        emotion_index("a", "Happy")


def test_valence_number_reads_text():
    assert valence_number("a", " -1.5 ") == -1.5
    assert valence_number("a", "  ") is None


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "high", "1,5"])
def test_valence_number_refuses_what_is_no_finite_number(text):
    with pytest.raises(DataError, match=rf"^a: valence: got '{text}', expected a number from -5 to 5$"):
        valence_number("a", text)


def test_check_refuses_nothing_and_the_same_name_twice():
    with pytest.raises(DataError, match="got no samples"):
        check([])
    check([sample("a"), sample("b", split="val")])
    with pytest.raises(DataError, match=r"^a: got this name twice"):
        check([sample("a"), sample("b"), sample("a", emotion=1)])


def test_check_refuses_a_speaker_in_two_splits():
    check([sample("a", speaker="x"), sample("b", speaker="x"), sample("c", split="val"), sample("d")])
    with pytest.raises(DataError, match=r"^speaker 'x': got it in the splits train, val, expected one split only$"):
        check([sample("a", speaker="x"), sample("b", speaker="x", split="val")])


def test_check_refuses_a_group_in_two_splits():
    with pytest.raises(DataError, match=r"^face 1: got it in the splits test, train"):
        check([sample("a", groups=("face 0", "face 1")), sample("b", split="test", groups=("face 1",))])


def test_check_disjoint_counts_the_others():
    with pytest.raises(DataError, match=r"^p: .*\(1 more like it\)"):
        check_disjoint([("q", "train"), ("p", "val"), ("q", "val"), ("p", "train"), ("r", "val")])


# VideoFile


def test_video_file_key_is_the_hash_of_all_its_content(tmp_path):
    content = bytes(range(256)) * 5000 + b"end"
    clip = VideoFile(tmp_path / "a.mp4")
    clip.path.write_bytes(content)
    assert clip.open() == clip.path
    assert clip.key() == hashlib.sha256(content).hexdigest()
    clip.path.write_bytes(content[:-1] + b"!")
    assert clip.key() == hashlib.sha256(content[:-1] + b"!").hexdigest()


def test_video_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.mp4: cannot read the clip: No such file"):
        VideoFile(tmp_path / "gone.mp4").key()


# Manifests


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest, and an empty clip for each row that does not start with `missing`."""

    def write(text, *, encoding="utf-8", newline="\n", folder=tmp_path):
        for row in text.strip().splitlines()[1:]:
            name = row.split(",")[0].strip('"')
            if name and not name.startswith(("missing", "/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
        csv_file = tmp_path / "clips.csv"
        csv_file.write_bytes(text.replace("\n", newline).encode(encoding))
        return csv_file

    return write


FULL = """file,emotion,valence,speaker,split
a.mp4,happy,2.5,anna,train
sub/b.mp4,worried,,,val
c.mp4,,-5,carl,test2
"""


def test_a_manifest_gives_its_rows(manifest, tmp_path):
    samples, skipped = read_manifest(manifest(FULL))
    assert skipped == []
    assert samples == [
        Sample("a.mp4", VideoFile(tmp_path / "a.mp4"), 2, 2.5, "anna", "train"),
        Sample("sub/b.mp4", VideoFile(tmp_path / "sub/b.mp4"), 4, None, None, "val"),
        Sample("c.mp4", VideoFile(tmp_path / "c.mp4"), None, -5.0, "carl", "test2"),
    ]


@pytest.mark.parametrize(
    ("encoding", "newline"), [("utf-8-sig", "\n"), ("utf-8", "\r\n"), ("utf-8-sig", "\r\n"), ("utf-8", "\n\n")]
)
def test_bom_crlf_and_blank_lines_change_nothing(manifest, encoding, newline):
    plain = read_manifest(manifest(FULL))
    assert read_manifest(manifest(FULL, encoding=encoding, newline=newline)) == plain


def test_columns_come_in_any_order_and_cells_lose_white_space(manifest):
    text = "split , speaker,emotion,file\ntrain, anna ,happy , a.mp4\nval, bert , sad, b.mp4\n"
    csv_file = manifest(text)
    for name in ("a.mp4", "b.mp4"):
        (csv_file.parent / name).touch()
    samples, _ = read_manifest(csv_file)
    assert [(s.name, s.emotion, s.valence, s.speaker, s.split) for s in samples] == [
        ("a.mp4", 2, None, "anna", "train"),
        ("b.mp4", 3, None, "bert", "val"),
    ]


def test_unicode_names_and_quoted_commas(manifest):
    text = 'file,emotion,speaker,split\n张三/片 段.mp4,sad,张三,train\n"a, ü.mp4",happy,Zoë,val\n'
    csv_file = manifest(text)
    (csv_file.parent / "a, ü.mp4").touch()
    samples, skipped = read_manifest(csv_file)
    assert skipped == []
    assert [(s.name, s.speaker) for s in samples] == [("张三/片 段.mp4", "张三"), ("a, ü.mp4", "Zoë")]
    assert all(s.media.open().is_file() for s in samples)


def test_a_speaker_is_one_however_the_accents_are_encoded(manifest):
    text = "file,emotion,speaker,split\na.mp4,sad,Zo\u00eb,train\nb.mp4,happy,Zoe\u0308,val\n"
    with pytest.raises(DataError, match="speaker 'Zoë': got it in the splits train, val"):
        read_manifest(manifest(text))


def test_absolute_paths_and_the_media_root(manifest, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    absolute = tmp_path / "abs.mp4"
    absolute.touch()
    text = f"file,emotion,split\nclip.mp4,sad,train\n{absolute},happy,train\n"
    samples, skipped = read_manifest(manifest(text, folder=elsewhere), media_root=elsewhere)
    assert skipped == []
    assert [s.media.open() for s in samples] == [elsewhere / "clip.mp4", absolute]
    with pytest.raises(DataError, match=r"nowhere: media root: got no such folder"):
        read_manifest(tmp_path / "clips.csv", media_root=tmp_path / "nowhere")


def test_a_missing_clip_is_named_and_left_out(manifest, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    too_long = "missing" + "x" * 300
    text = f"file,emotion,split\na.mp4,sad,train\nmissing.mp4,happy,val\n{too_long},happy,val\n"
    csv_file = manifest(text)
    csv_file.write_text(csv_file.read_text() + "folder.mp4,sad,train\n")
    samples, skipped = read_manifest(csv_file)
    assert [s.name for s in samples] == ["a.mp4"]
    assert skipped[0] == f"missing.mp4: left out: no file {tmp_path / 'missing.mp4'}"
    assert skipped[1].startswith(f"{too_long}: left out: ")
    assert skipped[1].endswith("File name too long")
    assert skipped[2] == f"folder.mp4: left out: {tmp_path / 'folder.mp4'} is a folder"
    assert len(skipped) == 3


def test_no_clip_at_all_is_an_error(manifest):
    csv_file = manifest("file,emotion,split\nmissing1.mp4,sad,train\nmissing2.mp4,happy,val\n")
    with pytest.raises(DataError, match=r"clips\.csv: got no clip that exists, of 2, first missing1\.mp4: left out"):
        read_manifest(csv_file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "clips.csv: got an empty file, expected a header with the columns file"),
        ("\n\n", "clips.csv: got an empty file"),
        ("file,emotion,split\n", "clips.csv: got no samples"),
        ("file,emotion\n", "clips.csv: got no samples"),
        (
            "file,emotion,mood,age\na.mp4,sad,x,3\n",
            "clips.csv: columns: got unknown 'mood', 'age', expected only file,",
        ),
        ("file;emotion\na.mp4;sad\n", "clips.csv: columns: got unknown 'file;emotion'"),
        ("emotion,split\nsad,train\n", "clips.csv: columns: got emotion, split, expected file too"),
        ("file,split\na.mp4,train\n", "clips.csv: columns: got file, split, expected emotion, valence or both"),
        ("file,emotion,emotion\na.mp4,sad,sad\n", "clips.csv: columns: got emotion twice"),
        ("file,emotion,split\na.mp4,sad,train\nb.mp4,sad\n", "clips.csv: row 3: got 2 cells, expected 3"),
        ("file,emotion,split\na.mp4,sad,train\n\nb.mp4,sad,val,\n", "clips.csv: row 4: got 4 cells, expected 3"),
        ('file,emotion,split\na.mp4,"sad"x,train\n', "clips.csv: got text that is no CSV"),
        ('file,emotion,split\na.mp4,"sad,train\n', "clips.csv: got text that is no CSV"),
        (
            "file,emotion,split\na.mp4,sad,train\nb.mp4,fear,train\n",
            "clips.csv: row 3: b.mp4: emotion: got 'fear', expected one of neutral, angry, happy, sad, worried,",
        ),
        ("file,valence,split\na.mp4,nan,train\n", "clips.csv: row 2: a.mp4: valence: got 'nan', expected a number"),
        ("file,valence,split\na.mp4,7,train\n", "clips.csv: row 2: a.mp4: valence: got 7, expected -5 to 5"),
        (
            "file,emotion,valence,split\na.mp4,,,train\n",
            "clips.csv: row 2: a.mp4: got neither an emotion nor a valence",
        ),
        ("file,emotion,split\na.mp4,sad,\n", "clips.csv: row 2: a.mp4: split: got an empty name"),
        ("file,emotion,split\n ,sad,train\n", "clips.csv: row 2: file: got an empty cell"),
        (
            "file,emotion,split\na.mp4,sad,train\na.mp4,sad,val\n",
            "clips.csv: row 3: a.mp4: got the clip of row 2 again",
        ),
        (
            "file,emotion,split\na.mp4,sad,train\nx/../a.mp4,sad,val\n",
            "clips.csv: row 3: x/../a.mp4: got the clip of row 2 again",
        ),
        (
            "file,emotion,speaker,split\na.mp4,sad,x,train\nmissing.mp4,sad,x,test\n",
            "clips.csv: speaker 'x': got it in the splits test, train",
        ),
        ("file,emotion\na.mp4,sad\nb.mp4,sad\n", "clips.csv: splits: got 2 speakers"),
    ],
)
def test_a_manifest_that_cannot_be_used_says_where_and_why(manifest, text, message):
    with pytest.raises(DataError) as error:
        read_manifest(manifest(text))
    assert message in said(error)


def test_a_link_to_a_clip_is_the_same_clip(manifest, tmp_path):
    csv_file = manifest("file,emotion,split\na.mp4,sad,train\nmissing-no-longer.mp4,sad,val\n")
    (tmp_path / "missing-no-longer.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="got the clip of row 2 again"):
        read_manifest(csv_file)


def test_files_that_are_no_utf8_csv(manifest, tmp_path):
    with pytest.raises(DataError, match=r": got a folder, expected a CSV file$"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match=r"none\.csv: cannot read the CSV: No such file"):
        read_manifest(tmp_path / "none.csv")
    latin = manifest("file,emotion,speaker,split\na.mp4,sad,Zoë,train\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"clips\.csv: encoding: got byte 0xeb in line 2, expected UTF-8$"):
        read_manifest(latin)
    wide = manifest("file,emotion,split\na.mp4,sad,train\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"encoding: got byte 0xff in line 1, expected UTF-8$"):
        read_manifest(wide)


def test_a_table_may_have_other_columns_where_its_reader_says_so(tmp_path):
    (tmp_path / "t.csv").write_text("name,extra\nx, y\n")
    assert read_table(tmp_path / "t.csv", ("name",)) == (["name", "extra"], [(2, {"name": "x", "extra": "y"})])
    with pytest.raises(DataError, match="got unknown 'extra', expected only name, emotion"):
        read_table(tmp_path / "t.csv", ("name",), ("emotion",))


def test_a_manifest_without_splits_gets_them_and_keeps_them(manifest, tmp_path):
    rows = "".join(f"{n:03d}.mp4,sad,s{n % 20}\n" for n in range(200))
    csv_file = manifest("file,emotion,speaker\n" + rows)
    samples, _ = read_manifest(csv_file)
    splits = {s.name: s.split for s in samples}
    assert Counter(splits.values()) == {"train": 160, "val": 20, "test": 20}
    check(samples)
    assert {s.name: s.split for s in read_manifest(csv_file)[0]} == splits
    assert {s.name: s.split for s in read_manifest(csv_file, seed=1)[0]} != splits
    (tmp_path / "000.mp4").unlink()
    fewer, skipped = read_manifest(csv_file)
    assert [note.split(":")[0] for note in skipped] == ["000.mp4"]
    assert {s.name: s.split for s in fewer} == {name: split for name, split in splits.items() if name != "000.mp4"}


# Splits and folds


def crowd(sizes, groups=()):
    """Speakers with these numbers of clips; `groups` maps names of clips to groups."""
    groups = dict(groups)
    return [
        sample(f"{who}-{n}", speaker=f"s{who}", groups=groups.get(f"{who}-{n}", ()))
        for who, size in enumerate(sizes)
        for n in range(size)
    ]


def test_splits_do_not_depend_on_the_order_of_the_samples():
    samples = crowd([3, 9, 1, 4, 4, 7, 2, 5])
    forward = {s.name: s.split for s in split_speakers(samples, seed=4)}
    turned = split_speakers(samples[::-1], seed=4)
    assert {s.name: s.split for s in turned} == forward
    assert [s.name for s in turned] == [s.name for s in samples[::-1]]


@pytest.mark.parametrize("seed", range(8))
def test_splits_are_disjoint_by_speaker_and_none_is_empty(seed):
    for sizes in ([1, 1, 1], [50, 1, 1], [1, 80, 2, 3], [4] * 10):
        samples = split_speakers(crowd(sizes), seed=seed)
        check(samples)
        assert {s.split for s in samples} == {"train", "val", "test"}


def test_splits_without_speakers_are_by_clip_and_meet_the_shares():
    samples = split_speakers([sample(f"{n}") for n in range(50)], {"train": 0.5, "dev": 0.3, "test": 0.2})
    assert Counter(s.split for s in samples) == {"train": 25, "dev": 15, "test": 10}


def test_groups_tie_speakers_together():
    tied = {"0-0": ("face",), "3-1": ("face", "room"), "5-0": ("room",)}
    for seed in range(10):
        samples = split_speakers(crowd([2] * 8, tied), seed=seed)
        check(samples)
        assert len({s.split for s in samples if s.speaker in ("s0", "s3", "s5")}) == 1


@pytest.mark.parametrize(
    "parts", [{}, {"train": 1.5, "val": -0.5}, {"train": 0.8, "val": 0.1}, {"a": 1.0, "b": 0.0}, {"a": math.nan}]
)
def test_shares_that_are_none(parts):
    with pytest.raises(DataError, match="expected shares above 0 that sum to 1"):
        split_speakers(crowd([1] * 5), parts)


def test_too_few_speakers_for_the_splits():
    with pytest.raises(DataError, match=r"got 2 speakers .*expected at least 3 for train, val, test"):
        split_speakers(crowd([10, 10]))


@pytest.mark.parametrize("sizes", [[5, 1, 1, 8, 2, 2, 3], [1] * 23])
def test_every_training_sample_is_validated_on_once(sizes):
    samples = crowd(sizes)
    others = [sample("v", split="val"), sample("t", split="test1")]
    pairs = folds(samples + others, 5, seed=2)
    assert len(pairs) == 5
    for train, val in pairs:
        assert train
        assert val
        assert [s for s in samples if s in train or s in val] == samples
        assert not {s.speaker for s in train} & {s.speaker for s in val}
        assert {s.split for s in train + val} == {"train"}
    assert Counter(s.name for _, val in pairs for s in val) == Counter(s.name for s in samples)


def test_folds_of_clips_are_even_and_follow_the_seed():
    samples = [sample(f"{n}") for n in range(23)]
    assert sorted(len(val) for _, val in folds(samples, 5)) == [4, 4, 5, 5, 5]
    assert folds(samples, 5, seed=1) == folds(samples, 5, seed=1)
    assert folds(samples, 5, seed=1) != folds(samples, 5, seed=2)


def test_folds_keep_groups_together():
    for seed in range(10):
        for train, val in folds(crowd([1] * 6, {"0-0": ("face",), "4-0": ("face",)}), 3, seed):
            assert not {g for s in train for g in s.groups} & {g for s in val for g in s.groups}


@pytest.mark.parametrize(("k", "speakers"), [(1, 5), (0, 5), (6, 5), (2, 0)])
def test_folds_that_cannot_be(k, speakers):
    with pytest.raises(DataError, match=rf"^folds: got {k} folds of {speakers} speakers"):
        folds(crowd([2] * speakers), k)


# MER 2023


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def prepare(root, **corpora):
    """What the baseline's preparation leaves: clips in `video`, labels as pickled dicts."""
    touch(
        root / "video", *(f"{name}.avi" for corpus in corpora.values() if isinstance(corpus, dict) for name in corpus)
    )
    np.savez_compressed(root / "label-6way.npz", **{f"{split}_corpus": corpus for split, corpus in corpora.items()})


def facts(samples):
    return [(s.name, None if s.emotion is None else EMOTIONS[s.emotion], s.valence, s.split) for s in samples]


def test_mer2023_as_the_baseline_prepares_it(tmp_path):
    prepare(
        tmp_path,
        train={"sample_00000000": {"emo": "happy", "val": 1.5}, "sample_00000001": {"emo": "sad", "val": -3}},
        test1={"sample_00000002": {"emo": "neutral", "val": 0.25}},
        test2={"sample_00000003": {"emo": "angry", "val": ""}, "sample_00000004": {"emo": "angry"}},
        test3={"sample_00000005": {"emo": "worried", "val": -10}, "sample_00000006": {"emo": "neutral", "val": -10}},
    )
    samples, notes = read_mer2023(tmp_path)
    assert notes == []
    assert facts(samples) == [
        ("sample_00000000", "happy", 1.5, "train"),
        ("sample_00000001", "sad", -3.0, "train"),
        ("sample_00000002", "neutral", 0.25, "test1"),
        ("sample_00000003", "angry", None, "test2"),
        ("sample_00000004", "angry", None, "test2"),
        ("sample_00000005", "worried", None, "test3"),
        ("sample_00000006", "neutral", None, "test3"),
    ]
    assert samples[0].media == VideoFile(tmp_path / "video" / "sample_00000000.avi")
    assert {s.speaker for s in samples} == {None}


@pytest.mark.parametrize(
    ("value", "valence"),
    [
        (np.float64(1.5), 1.5),
        (np.float32(-0.5), -0.5),
        (np.int64(-4), -4.0),
        (np.int64(-10), None),
        (np.str_("2.25"), 2.25),
        (math.nan, None),
        (np.float64("nan"), None),
        (None, None),
    ],
)
def test_mer2023_numbers_as_a_data_frame_gives_them(tmp_path, value, valence):
    prepare(tmp_path, train={np.str_("片段"): {"emo": np.str_("surprise"), "val": value}})
    assert facts(read_mer2023(tmp_path)[0]) == [("片段", "surprise", valence, "train")]


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("home", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_mer2023_pickles_of_old_and_new_numpy(tmp_path, protocol, home):
    labels = {"c": {"emo": "sad", "val": np.float64(0.5)}}
    pickled = pickle.dumps(np.array(labels, dtype=object), protocol=protocol)
    old, new = b"numpy._core.multiarray", b"numpy.core.multiarray"
    if old not in pickled:
        old, new = new, old
    assert old in pickled
    if home == new and protocol == 3:  # in protocol 3 the name is ended by a line break and has no length
        pickled = pickled.replace(old, new)
    elif home == new:
        pickled = pickled.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
        # The frame's length, 8 bytes behind b"\x80\x04\x95".
        pickled = pickled[:3] + (len(pickled) - 11).to_bytes(8, "little") + pickled[11:]
    write_member(tmp_path, pickled)
    assert facts(read_mer2023(tmp_path)[0]) == [("c", "sad", 0.5, "train")]


def write_member(
    root, pickled, header=b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n", name="train_corpus.npy"
):
    touch(root / "video", "c.avi")
    with zipfile.ZipFile(root / "label-6way.npz", "w") as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled)


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_mer2023_does_not_run_what_a_pickle_asks_for(tmp_path):
    marker = tmp_path / "executed"
    evil = Evil(os.mkdir, str(marker))
    prepare(tmp_path, train=np.array({"c": {"emo": "sad", "val": evil}}, dtype=object))
    with np.load(tmp_path / "label-6way.npz", allow_pickle=True) as control:
        control["train_corpus"]
    assert marker.is_dir(), "this file must be harmful for the test to mean anything"
    marker.rmdir()
    with pytest.raises(
        DataError, match=r"label-6way\.npz: train_corpus\.npy: refused: the pickle asks for posix\.mkdir"
    ):
        read_mer2023(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (eval, ("1",), "builtins.eval"),
        (getattr, (1, "real"), "builtins.getattr"),
        (Counter, (), "collections.Counter"),
        (np.frombuffer, (b"1",), "numpy.frombuffer"),
        (np.load, ("x",), "numpy.load"),
    ],
)
def test_mer2023_refuses_every_other_name(tmp_path, function, arguments, name):
    prepare(tmp_path, train=np.array({"c": Evil(function, *arguments)}, dtype=object))
    with pytest.raises(DataError, match=f"refused: the pickle asks for {name}"):
        read_mer2023(tmp_path)


@pytest.mark.parametrize(
    "pickled",
    [
        # Attributes set on the classes themselves.
        b"cnumpy\nndarray\n(N(S'item'\nI1\ndtb.",
        b"cnumpy\ndtype\n(N(S'order'\nI1\ndtb.",
        b"cnumpy.core.multiarray\nscalar\n(N(S'decode'\nI1\ndtb.",
        # An array of types, with bytes where objects belong, and one of two dicts.
        b"cnumpy\nndarray\n)R(I1\n)NI00\nS'12345678'\ntb.",
        b"cnumpy\nndarray\n)R(I1\n)NI00\n(]]ltb.",
        # Damaged, empty, a bare dict, a name in parts, another extension, a persistent name.
        b"",
        b"\x80\x04",
        b"}.",
        b"garbage",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.item\x93.",
        b"\x82\x01.",
        b"Pname\n.",
    ],
)
def test_mer2023_refuses_pickles_that_hold_no_labels(tmp_path, pickled):
    write_member(tmp_path, pickled)
    with pytest.raises(DataError, match=r"label-6way\.npz: train_corpus\.npy: "):
        read_mer2023(tmp_path)
    prepare(tmp_path, train={"c": {"emo": "sad", "val": np.float64(0.5)}})
    assert facts(read_mer2023(tmp_path)[0]) == [("c", "sad", 0.5, "train")], "the reader itself was changed"


class Number:
    """Pickled as numpy pickles one of its scalars, of any type and from any bytes."""

    def __init__(self, order, code, data):
        self.order, self.code, self.data = order, code, data

    def __reduce__(self):
        return np._core.multiarray.scalar, (NumberType(self.order, self.code), self.data)


class NumberType:
    def __init__(self, order, code):
        self.order, self.code = order, code

    def __reduce__(self):
        return np.dtype, (self.code, False, True), (3, self.order, None, None, None, -1, -1, 0)


@pytest.mark.parametrize("order", ["<", ">"])
def test_mer2023_numbers_of_either_byte_order(tmp_path, order):
    number = Number(order, "f8", struct.pack(f"{order}d", 1.5))
    touch(tmp_path / "video", "c.avi")
    prepare(tmp_path, train=np.array({"c": {"emo": "sad", "val": number}}, dtype=object))
    assert facts(read_mer2023(tmp_path)[0]) == [("c", "sad", 1.5, "train")]


@pytest.mark.parametrize(
    ("code", "data"), [("O8", "x"), ("f8", b"1234"), ("f8", b"0" * 16), ("V8", b"0" * 8), ("M8", b"0" * 8), ("f8", "x")]
)
def test_mer2023_refuses_numbers_of_other_types(tmp_path, code, data):
    prepare(tmp_path, train=np.array({"c": {"emo": "sad", "val": Number("<", code, data)}}, dtype=object))
    with pytest.raises(DataError, match=r"got (a number of type|\d+ bytes for a number of type)"):
        read_mer2023(tmp_path)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"c": {"emo": "fear", "val": 1}}, "train: c: emotion: got 'fear', expected one of neutral"),
        ({"c": {"emo": 3, "val": 1}}, "train: c: emotion: got '3', expected one of neutral"),
        ({"c": {"emo": "sad", "val": 6}}, "train: c: valence: got 6, expected -5 to 5"),
        ({"c": {"emo": "sad", "val": "nan"}}, "train: c: valence: got 'nan', expected a number"),
        ({"c": {"emo": "", "val": -10}}, "train: c: got neither an emotion nor a valence"),
        ({"c": {"emo": ["sad"], "val": 1}}, "got list in a label, expected text or a number"),
        ({"c": "sad"}, "got 'c': str, expected the name of a clip and a dict"),
        ({7: {"emo": "sad"}}, "got 7: dict, expected the name of a clip and a dict"),
        (["c"], "got an array of shape (1,) and type <U1, expected a pickled dict"),
        (np.array(["c", {}], dtype=object), "got an array of shape (2,) and type object, expected a pickled dict"),
        (np.float64(1), "got an array of shape () and type float64, expected a pickled dict"),
        (np.array("c", dtype=object), "got str, expected a dict of labels"),
        ({}, "label-6way.npz: got no samples"),
    ],
)
def test_mer2023_labels_that_cannot_be_used(tmp_path, corpus, message):
    prepare(tmp_path, train=corpus)
    with pytest.raises(DataError) as error:
        read_mer2023(tmp_path)
    assert message in said(error)


def test_mer2023_files_that_are_no_npz(tmp_path):
    with pytest.raises(DataError, match=r"none: got no such folder, expected the folder of MER 2023"):
        read_mer2023(tmp_path / "none")
    with pytest.raises(DataError, match=r"got no labels, expected label-6way\.npz or train-label\.csv in one of"):
        read_mer2023(tmp_path)
    npz = tmp_path / "label-6way.npz"
    npz.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"label-6way\.npz: got a file that is no readable npz"):
        read_mer2023(tmp_path)
    prepare(tmp_path, train={f"c{n}": {"emo": "sad", "val": n / 100} for n in range(100)})
    content = npz.read_bytes()
    with zipfile.ZipFile(npz) as archive:
        (info,) = archive.infolist()
    names = content[info.header_offset + 26 : info.header_offset + 30]
    start = info.header_offset + 30 + sum(struct.unpack("<HH", names))
    with pytest.raises(zlib.error):
        zlib.decompress(b"\x07" + content[start + 1 : start + info.compress_size], wbits=-15)
    for damaged in (
        content[:start] + b"\x07" + content[start + 1 :],  # no such kind of block
        content[: start + 40] + b"!!!" + content[start + 43 :],
        content[:-30],
    ):
        npz.write_bytes(damaged)
        with pytest.raises(DataError, match=r"label-6way\.npz: got a file that is no readable npz"):
            read_mer2023(tmp_path)
    np.savez_compressed(npz, whole_corpus={"c": {"emo": "sad"}})
    with pytest.raises(DataError, match=r"got the entry 'whole_corpus\.npy', expected only train_corpus, test1_corpus"):
        read_mer2023(tmp_path)
    write_member(tmp_path, b"", header=b"no header")
    with pytest.raises(DataError, match=r"train_corpus\.npy: got an entry that is no array of numpy's"):
        read_mer2023(tmp_path)
    with pytest.raises(DataError, match=r"other\.npz: got no such file"):
        read_mer2023(tmp_path, labels=tmp_path / "other.npz")


def test_mer2023_placeholders_are_no_labels(tmp_path):
    stand_in = {"emo": "neutral", "val": -10}
    prepare(
        tmp_path, train={"a": {"emo": "sad", "val": 1.0}}, test1={"b": stand_in, "c": stand_in}, test3={"d": stand_in}
    )
    samples, notes = read_mer2023(tmp_path)
    assert facts(samples) == [("a", "sad", 1.0, "train")]
    assert [note[:17] for note in notes] == ["test1: left out: ", "test3: left out: "]
    assert "for all 2 clips" in notes[0]
    prepare(tmp_path, test1={"b": stand_in})
    with pytest.raises(DataError, match=r"got no samples; test1: left out"):
        read_mer2023(tmp_path)


def test_mer2023_one_name_in_two_splits_is_refused(tmp_path):
    prepare(tmp_path, train={"a": {"emo": "sad"}}, test1={"a": {"emo": "sad"}})
    with pytest.raises(DataError, match=r"label-6way\.npz: a: got this name twice"):
        read_mer2023(tmp_path)


def test_mer2023_missing_clips_are_named(tmp_path):
    prepare(tmp_path, train={"a": {"emo": "sad"}, "b": {"emo": "sad"}})
    (tmp_path / "video" / "b.avi").unlink()
    samples, notes = read_mer2023(tmp_path)
    assert [s.name for s in samples] == ["a"]
    assert notes == [f"b: left out: no file {tmp_path / 'video' / 'b.avi'}"]
    (tmp_path / "video" / "a.avi").unlink()
    with pytest.raises(DataError, match=r"label-6way\.npz: got no clip that exists, of 2"):
        read_mer2023(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/outside", "video/a", ".."])
def test_mer2023_a_name_cannot_lead_out_of_the_folder(tmp_path, name):
    touch(tmp_path / "video", "a.avi")
    (tmp_path / "outside.avi").touch()
    (tmp_path / "train-label.csv").write_text(f"name,discrete\na,sad\n{name},sad\n")
    with pytest.raises(DataError, match=rf"train: {name}: got a path, expected the name of a clip without its folder$"):
        read_mer2023(tmp_path)


TRAIN = "name,discrete,valence\nsample_1,happy,2.5\nsample_2,sad,\n"
TEST3 = "name,discrete\nsample_10,worried\n"


def handed_out(root, label_folder="."):
    touch(root / "train", "sample_1.avi", "sample_2.MP4", "sample_2.wav", "notes.txt")
    touch(root / "test3", "sample_10.mp4")
    (root / "train-label.csv").write_text(TRAIN)
    (root / label_folder).mkdir(exist_ok=True)
    (root / label_folder / "test3-label.csv").write_text(TEST3)


EXPECTED = [
    ("sample_1", "happy", 2.5, "train"),
    ("sample_2", "sad", None, "train"),
    ("sample_10", "worried", None, "test3"),
]


def test_mer2023_clips_are_taken_from_the_first_folder_that_has_them(tmp_path):
    labels = tmp_path / "train-label.csv"
    labels.write_text("name,discrete\nc,sad\n")
    folders = [tmp_path / "video", tmp_path / "train", tmp_path / "mer2023train" / "train", tmp_path]
    for folder in folders:
        touch(folder, "c.avi")
    for folder in folders:
        assert [s.media.open() for s in read_mer2023(tmp_path)[0]] == [folder / "c.avi"]
        (folder / "c.avi").unlink()


def test_mer2023_an_entry_may_not_grow_without_end(tmp_path, monkeypatch):
    prepare(tmp_path, train={"c": {"emo": "sad"}})
    monkeypatch.setattr("training.mer2023.LARGEST", 100)
    with pytest.raises(DataError, match=r"train_corpus\.npy: got more than 100 bytes"):
        read_mer2023(tmp_path)


@pytest.mark.parametrize("label_folder", [".", "test-labels"])
def test_mer2023_as_it_is_handed_out(tmp_path, label_folder):
    handed_out(tmp_path, label_folder)
    samples, notes = read_mer2023(tmp_path)
    assert notes == []
    assert facts(samples) == EXPECTED
    assert [str(s.media.open().relative_to(tmp_path)) for s in samples] == [
        "train/sample_1.avi",
        "train/sample_2.MP4",
        "test3/sample_10.mp4",
    ]


def test_mer2023_labels_can_be_said(tmp_path):
    handed_out(tmp_path / "set")
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "train-label.csv").write_text("name,discrete,valence,comment\nsample_1,angry,-1,x\n")
    assert facts(read_mer2023(tmp_path / "set", labels)[0]) == [("sample_1", "angry", -1.0, "train")]
    (labels / "test3-label.csv").write_text(TEST3)
    assert facts(read_mer2023(tmp_path / "set", labels / "test3-label.csv")[0]) == EXPECTED[2:]
    with pytest.raises(DataError, match=r"labels: got 'mine\.csv', expected label-6way\.npz or SPLIT-label\.csv"):
        read_mer2023(tmp_path / "set", labels / "mine.csv")


def test_mer2023_labels_in_two_places_are_refused(tmp_path):
    handed_out(tmp_path)
    (tmp_path / "test-labels").mkdir()
    (tmp_path / "test-labels" / "test3-label.csv").write_text(TEST3)
    with pytest.raises(DataError, match=r"got .*test3-label\.csv and .*test3-label\.csv, expected one"):
        read_mer2023(tmp_path)
    (tmp_path / "test-labels" / "test3-label.csv").unlink()
    prepare(tmp_path, train={"sample_1": {"emo": "sad"}})
    with pytest.raises(DataError, match="expected one kind of labels; say which with labels"):
        read_mer2023(tmp_path)
    assert facts(read_mer2023(tmp_path, tmp_path / "label-6way.npz")[0]) == [("sample_1", "sad", None, "train")]


def test_mer2023_two_clips_of_one_name_are_refused(tmp_path):
    handed_out(tmp_path)
    touch(tmp_path / "train", "sample_1.mp4")
    with pytest.raises(DataError, match=r"^sample_1: got .*sample_1\.avi and .*sample_1\.mp4, expected one clip"):
        read_mer2023(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,valence\nsample_1,2\n", "train-label.csv: columns: got name, valence, expected discrete too"),
        ("name,discrete\nsample_1,happy\nsample_1,sad\n", "train-label.csv: row 3: name: got sample_1 twice"),
        ("name,discrete\n,sad\n", "train-label.csv: row 2: name: got an empty cell"),
        ("name,discrete\nsample_1,joy\n", "train-label.csv: train: sample_1: emotion: got 'joy'"),
    ],
)
def test_mer2023_csv_that_cannot_be_used(tmp_path, text, message):
    handed_out(tmp_path)
    (tmp_path / "train-label.csv").write_text(text)
    with pytest.raises(DataError) as error:
        read_mer2023(tmp_path)
    assert message in said(error)


def test_mer2023_five_folds_are_by_clip(tmp_path):
    prepare(tmp_path, train={f"c{n:02d}": {"emo": "sad", "val": 0.5} for n in range(12)}, test1={"t": {"emo": "sad"}})
    pairs = folds(read_mer2023(tmp_path)[0], 5)
    assert sorted(len(val) for _, val in pairs) == [2, 2, 2, 3, 3]
    assert {len(train) + len(val) for train, val in pairs} == {12}
