"""Checkpoints from the hub, against a server on this machine that speaks the hub's API."""

import socket

import pytest
from hub_server import Repo
from tiny_checkpoints import write

from merfast.create import create
from merfast.errors import BundleError, UnavailableError
from merfast.models import checkpoints

pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")

pytestmark = pytest.mark.usefixtures("hub_cache")


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture
def hubert(hub_server, tmp_path):
    repo = hub_server.repos["someone/hubert"] = Repo()
    card = b"---\nlicense: apache-2.0\n---\n# HuBERT\n"
    repo.commit({**content(write(tmp_path / "hubert", "hubert")), "README.md": card, "pytorch_model.bin": b"pickle"})
    return repo


def test_a_bundle_of_a_checkpoint_from_the_hub(hub_server, hubert, tmp_path):
    sentence = r"^someone/hubert: not a directory, and not in the hub's local cache; download=True \(--download\) gets"
    for source in ("someone/hubert", "voice=someone/hubert"):
        with pytest.raises(UnavailableError, match=sentence):
            create(tmp_path / "out", audio=[source], endpoint=hub_server.endpoint)
    assert hub_server.requests == []
    made = create(tmp_path / "out", audio=["voice=someone/hubert@main"], download=True, endpoint=hub_server.endpoint)
    origin = made.config.provenance["encoders"]["voice"]
    assert (origin["source"], origin["revision"]) == ("someone/hubert", hubert.refs["main"])
    assert made.config.licence == "apache-2.0"
    assert not any("pytorch_model.bin" in r for r in hub_server.requests)
    asked = len(hub_server.requests)
    again = create(tmp_path / "again", audio=["voice=someone/hubert"])
    assert again.config.provenance == made.config.provenance
    assert len(hub_server.requests) == asked


def test_checkpoints_of_the_hub_that_cannot_be_used(hub_server, hubert, tmp_path, hub_cache):
    hub_server.repos["someone/pickled"] = Repo()
    files = {k: v for k, v in hubert.files().items() if k != "model.safetensors"}
    hub_server.repos["someone/pickled"].commit(files)
    with pytest.raises(BundleError, match=r"^someone/pickled: got pytorch_model.bin, expected model.safetensors"):
        checkpoints.locate("someone/pickled", download=True, endpoint=hub_server.endpoint)
    # Its config alone is in the cache now.
    with pytest.raises(UnavailableError, match=r"^someone/pickled: not a directory, and not in the hub's local cache"):
        checkpoints.locate("someone/pickled")
    with pytest.raises(UnavailableError, match=r"^someone/hubert@v9: no revision 'v9' on the hub$"):
        checkpoints.locate("someone/hubert", "v9", download=True, endpoint=hub_server.endpoint)
    with pytest.raises(BundleError, match=r"^a/b@c: not a directory, and no hub id like"):
        checkpoints.locate("a/b@c", "d")


def test_a_pull_request_of_the_hub_is_a_revision(hub_server, hubert, tmp_path):
    hubert.refs["refs/pr/1"] = hubert.refs["main"]
    made = create(tmp_path / "out", audio=["someone/hubert@refs/pr/1"], download=True, endpoint=hub_server.endpoint)
    assert made.config.provenance["encoders"]["hubert"]["revision"] == hubert.refs["main"]


def test_a_hub_that_does_not_answer():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=r"^someone/x: cannot be had from the hub: .*Connection refused$"):
            checkpoints.locate("someone/x", download=True, endpoint=endpoint)


def test_what_is_cached_is_used_where_the_hub_does_not_answer(hub_server, hubert):
    there = checkpoints.locate("someone/hubert", download=True, endpoint=hub_server.endpoint)
    assert there.name == hubert.refs["main"]
    assert checkpoints.load_pretrained("someone/hubert", modality="audio").family == "hubert"
    assert checkpoints.locate("someone/hubert", download=True, endpoint="http://127.0.0.1:1") == there
