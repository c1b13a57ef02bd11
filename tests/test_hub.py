"""Bundles to and from the hub, against a server on this machine that speaks the hub's API."""

import shutil
import socket
import sys

import pytest
import torch
from hub_server import TOKEN, Repo
from tiny_checkpoints import write

from merfast import Engine, UntrainedWarning, bundle, cli, hub
from merfast.create import create
from merfast.errors import BundleError, ConfigError, UnavailableError
from training.make_untrained import write as write_mini

client = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'merfast[hub]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'merfast[transformers]'")

# The client's own way to send large files is deprecated by its HTTP client.
pytestmark = [
    pytest.mark.usefixtures("hub_cache"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

NAME = "someone/fused"
FILES = [
    "README.md",
    "config.json",
    "encoders/hubert/config.json",
    "encoders/hubert/model.safetensors",
    "encoders/hubert/preprocessor_config.json",
    "model.safetensors",
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A bundle of a HuBERT, with things beside it that must not travel."""
    folder = tmp_path_factory.mktemp("made")
    out = folder / "fused"
    create(out, audio=[write(folder / "hubert", "hubert")])
    (out / "compiled").mkdir()
    (out / "compiled" / "engine.bin").write_bytes(b"local")
    for name in ("notes.txt", "pytorch_model.bin", "encoders/hubert/pytorch_model.bin", "encoders/hubert/evil.py"):
        (out / name).write_bytes(b"not part of it")
    return out


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def wanted(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def published(hub_server, original):
    """The bundle on the hub, among other files."""
    repo = hub_server.repos[NAME] = Repo()
    repo.commit(
        {**wanted(original), "compiled/x": b"x", "pytorch_model.bin": b"x", "encoders/old/model.safetensors": b"x"}
    )
    return repo


def pull(hub_server, *arguments, **options):
    return bundle.pull(*arguments, endpoint=hub_server.endpoint, **options)


def push(hub_server, *arguments, **options):
    return bundle.push(*arguments, endpoint=hub_server.endpoint, **({"token": TOKEN} | options))


# Push.


def test_push_sends_the_bundle_and_nothing_else(hub_server, original):
    url = push(hub_server, original, NAME)
    repo = hub_server.repos[NAME]
    assert not repo.private
    assert url == f"{hub_server.endpoint}/{NAME}/commit/{repo.refs['main']}"
    sent = {k: v for k, v in repo.files().items() if k != ".gitattributes"}
    assert sent == wanted(original)
    assert len([r for r in hub_server.requests if r.startswith("PUT /lfs/")]) == 2  # both weights, as large files
    assert len(repo.commits) == 2


def test_push_then_pull_gives_the_same_files(hub_server, original, tmp_path):
    push(hub_server, original, NAME)
    assert pull(hub_server, NAME, tmp_path / "out") == tmp_path / "out"
    assert content(tmp_path / "out") == wanted(original)


def test_push_to_a_branch_and_again(hub_server, original):
    push(hub_server, original, NAME, revision="next")
    push(hub_server, original, NAME, revision="next")
    repo = hub_server.repos[NAME]
    assert sorted(repo.refs) == ["main", "next"]
    assert set(FILES) <= set(repo.files("next"))
    assert list(repo.files("main")) == [".gitattributes"]


def test_private_repositories(hub_server, original, tmp_path):
    push(hub_server, original, NAME, private=True)
    assert hub_server.repos[NAME].private
    push(hub_server, original, NAME, private=True)
    with pytest.raises(UnavailableError, match=rf"^{NAME}: no such repository on the hub, or none for this login"):
        pull(hub_server, NAME)
    pull(hub_server, NAME, tmp_path / "out", token=TOKEN)
    assert content(tmp_path / "out") == wanted(original)


def test_what_is_public_is_not_taken_for_private(hub_server, original, published):
    with pytest.raises(ConfigError, match=rf"^{NAME}: got a public repository, expected a private one"):
        push(hub_server, original, NAME, private=True)
    assert len(published.commits) == 1


def test_push_without_login(hub_server, original):
    with pytest.raises(
        UnavailableError, match=rf"^{NAME}: not allowed by the hub \(401\): log in with 'hf auth login'"
    ):
        push(hub_server, original, NAME, token=None)
    assert hub_server.repos == {}


def test_a_damaged_bundle_is_not_pushed(hub_server, original, tmp_path):
    broken = shutil.copytree(original, tmp_path / "broken")
    weights = broken / "encoders/hubert/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BundleError, match="damaged or not safetensors"):
        push(hub_server, broken, NAME)
    with pytest.raises(BundleError, match=r"nowhere: not a directory$"):
        push(hub_server, tmp_path / "nowhere", NAME)
    assert hub_server.requests == []


# Pull.


def test_pull_into_the_cache(hub_server, original, published, monkeypatch):
    with pytest.raises(
        BundleError, match=rf"^{NAME}: not a directory, and not in the hub's local cache: merfast bundle pull {NAME}$"
    ):
        bundle.load(NAME)
    assert hub_server.requests == []
    folder = pull(hub_server, NAME)
    assert folder.name == published.refs["main"]
    assert content(folder) == wanted(original)
    monkeypatch.setattr(client, "snapshot_download", None)  # no network from here on
    asked = len(hub_server.requests)
    loaded = bundle.load(NAME)
    assert loaded.path == folder
    expected = bundle.load(original).model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in loaded.model.state_dict().items())
    with pytest.warns(UntrainedWarning):
        assert Engine(NAME, detector="none").bundle.path == folder
    assert len(hub_server.requests) == asked


def test_revisions(hub_server, original, published, tmp_path):
    old = published.refs["main"]
    write_mini(tmp_path / "mini", seed=1)
    new = published.commit(content(tmp_path / "mini"), "main")
    published.refs["v1"] = old
    assert pull(hub_server, NAME, revision="v1").name == old
    with pytest.raises(BundleError, match=f"merfast bundle pull {NAME}$"):
        bundle.load(NAME)
    assert pull(hub_server, f"{NAME}").name == new
    assert bundle.load(f"{NAME}@v1").path.name == old
    assert bundle.load(NAME).path.name == new
    assert pull(hub_server, f"{NAME}@{old}").name == old
    with pytest.raises(BundleError, match=f"merfast bundle pull {NAME} --revision v2$"):
        bundle.load(f"{NAME}@v2")
    with pytest.raises(UnavailableError, match=f"^{NAME}@v2: no revision 'v2' on the hub$"):
        pull(hub_server, NAME, revision="v2")


def test_a_bad_bundle_does_not_replace_a_good_one(hub_server, original, published, tmp_path):
    good = pull(hub_server, NAME)
    published.commit({"encoders/hubert/model.safetensors": b"x" * 1000})
    for out in (None, tmp_path / "out"):
        with pytest.raises(
            BundleError, match=rf"^{NAME}: encoders/hubert/model.safetensors: damaged or not safetensors"
        ):
            pull(hub_server, NAME, out)
    assert bundle.load(NAME).path == good
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


def test_what_is_no_bundle(hub_server, published, tmp_path):
    published.commit({"config.json": b'{"model_type": "hubert"}'})
    with pytest.raises(BundleError, match=rf"^{NAME}: config.json: config format_version: got None, expected 1"):
        pull(hub_server, NAME, tmp_path / "out")
    hub_server.repos["someone/other"] = Repo()
    hub_server.repos["someone/other"].commit({"pytorch_model.bin": b"x"})
    with pytest.raises(BundleError, match=r"^someone/other: got no config.json on the hub, expected a bundle$"):
        pull(hub_server, "someone/other", tmp_path / "out")
    assert not any("pytorch_model.bin" in r for r in hub_server.requests)


def test_streams_lead_nowhere_else(hub_server, published, tmp_path):
    config = published.files()["config.json"].replace(b'"hubert"', b'"../../evil"')
    published.commit({"config.json": config})
    with pytest.raises(BundleError, match=r"config stream '../../evil': name cannot be used"):
        pull(hub_server, NAME, tmp_path / "out")


def test_out_must_be_new(hub_server, published, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"full: exists, expected a new or an empty folder$"):
        pull(hub_server, NAME, tmp_path / "full")
    assert hub_server.requests == []
    (tmp_path / "empty").mkdir()
    assert bundle.load(pull(hub_server, NAME, tmp_path / "empty")).config.name == "fused"


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "a b/c", "-a/b", "a/b.git", "a/b--c", "a/..", "https://x/y", ""])
def test_names_that_are_none(hub_server, name, original):
    for attempt in (lambda: pull(hub_server, name), lambda: push(hub_server, original, name)):
        with pytest.raises(ConfigError, match=r"got no hub id, expected one like 'owner/name'$"):
            attempt()
    assert hub_server.requests == []


def test_repositories_that_cannot_be_had(hub_server, published, monkeypatch):
    with pytest.raises(UnavailableError, match=r"^someone/none: no such repository on the hub, or none for this login"):
        pull(hub_server, "someone/none")
    published.gated = True
    with pytest.raises(UnavailableError, match=rf"^{NAME}@\w{{40}}: gated on the hub: ask for access"):
        pull(hub_server, NAME)
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    client.close_session()
    with pytest.raises(UnavailableError, match=rf"^{NAME}: cannot be had from the hub: .*offline") as caught:
        pull(hub_server, NAME)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer(original):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for attempt in (
            lambda: bundle.pull(NAME, endpoint=endpoint),
            lambda: bundle.push(original, NAME, endpoint=endpoint, token=TOKEN),
        ):
            with pytest.raises(UnavailableError, match=r"cannot be had from the hub: .*Connection refused$"):
                attempt()


def test_a_hub_that_is_out_of_order(hub_server, published, monkeypatch):
    monkeypatch.setattr("hub_server.Handler.describe", lambda self, *_: self.send({"error": "out of order"}, 500))
    with pytest.raises(UnavailableError, match=rf"^{NAME}: refused by the hub \(500\): out of order$"):
        pull(hub_server, NAME)


def test_without_huggingface_hub(original, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    sentence = r"^hub: needs huggingface_hub, pip install 'merfast\[hub\]'$"
    for attempt in (
        lambda: bundle.load(NAME),
        lambda: bundle.pull(NAME),
        lambda: bundle.push(original, NAME),
        lambda: hub.cached(hub.named(NAME)),
    ):
        with pytest.raises(UnavailableError, match=sentence):
            attempt()
    assert bundle.load().config.name == "merfast-mini"


# The command line.


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_commands(hub_server, original, tmp_path, capsys, monkeypatch, hub_cache):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    far = ["--endpoint", hub_server.endpoint]
    status, out, err = run(capsys, "bundle", "push", original, NAME, "--private", *far)
    assert (status, err) == (0, "")
    assert out == f"{hub_server.endpoint}/{NAME}/commit/{hub_server.repos[NAME].refs['main']}\n"
    assert run(capsys, "bundle", "pull", NAME, tmp_path / "out", *far) == (0, f"{tmp_path / 'out'}\n", "")
    assert content(tmp_path / "out") == wanted(original)
    assert run(capsys, "bundle", "verify", NAME)[0] == 2
    status, out, err = run(capsys, "bundle", "pull", NAME, *far)
    assert (status, err) == (0, "")
    assert out.startswith(str(hub_cache))
    assert run(capsys, "bundle", "verify", NAME)[0] == 0
    assert run(capsys, "info", NAME)[0] == 0


def test_commands_that_fail(hub_server, original, tmp_path, capsys):
    far = ["--endpoint", hub_server.endpoint]
    for arguments, message in (
        (["push", original, NAME, *far], f"{NAME}: not allowed by the hub (401): log in with 'hf auth login'"),
        (["pull", NAME, *far], f"{NAME}: no such repository on the hub"),
        (["pull", "x", *far], "x: got no hub id, expected one like 'owner/name'"),
        (["verify", NAME], f"{NAME}: not a directory, and not in the hub's local cache: merfast bundle pull {NAME}"),
    ):
        status, out, err = run(capsys, "bundle", *arguments)
        assert (status, out) == (2, "")
        assert err.startswith(f"merfast: {message}")
        assert err.count("\n") == 1
