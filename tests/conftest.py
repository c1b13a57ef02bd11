"""Fixtures for all tests: a clip, the data folder, and a guard against the network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from recordings import read

from merfast.demo import make_clip
from merfast.errors import UnavailableError

# A slow machine is no failure: tests do not assert times.
settings.register_profile("merfast", deadline=None)
settings.load_profile("merfast")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail whoever connects to anything but this machine."""
    connect, connect_ex, resolve = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if isinstance(name, str) and not (name in ("", "localhost", "::1") or name.startswith("127.")):
            pytest.fail(f"a test tried to reach {name!r}: tests do not use the network")

    def guarded_connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: object) -> int:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect_ex(self, address)

    def guarded_resolve(host, *args, **kwargs):
        check(host)
        return resolve(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        patch.setattr(socket, "getaddrinfo", guarded_resolve)
        yield


@pytest.fixture(scope="session")
def face_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2.5 s clip, 480 x 360, with one face throughout and sound; do not change it."""
    for module in ("av", "soxr", "platformdirs"):  # a machine for GPU kernels alone may lack them
        pytest.importorskip(module, reason=f"media needs {module}")
    from merfast.demo import make_clip

    try:
        return make_clip(tmp_path_factory.mktemp("clips") / "face.mp4", seconds=2.5)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the hub's client for this test, no login, and the LFS protocol, as where hf_xet is not installed."""
    client = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub: pip install 'merfast[hub]'")
    folder = tmp_path / "hub-cache"
    # Else asked of the hub, for the client's User-Agent.
    (tmp_path / "agents.json").write_text('{"standardEnvVars": [], "harnesses": {}}')
    for name, value in {
        "AGENT_HARNESSES_PATH": str(tmp_path / "agents.json"),
        "HF_HUB_CACHE": str(folder),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "none"),
    }.items():
        monkeypatch.setattr(client.constants, name, value, raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield folder
    client.close_session()


@pytest.fixture
def hub_server() -> Iterator[object]:
    """A small hub on this machine; see `tests/hub_server.py`."""
    from hub_server import running

    with running() as there:
        yield there


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data that MERFAST_DATA names."""
    place = os.environ.get("MERFAST_DATA")
    if not place:
        pytest.skip("MERFAST_DATA is not set: real data for tests is elsewhere")
    if not Path(place).is_dir():
        pytest.fail(f"MERFAST_DATA is {place!r}, which is no folder")
    return Path(place)


@pytest.fixture(scope="session")
def yunet_model(data_dir: Path) -> Path:
    """The YuNet detector's file among the data."""
    file = data_dir / "models" / "face_detection_yunet_2023mar.onnx"
    if not file.is_file():
        pytest.skip(f"no YuNet detector in {file.parent}")
    return file


@pytest.fixture(scope="session")
def demo_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return make_clip(tmp_path_factory.mktemp("live") / "face.mp4", seconds=6.0)
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def recording(demo_clip: Path) -> list[tuple[float, Any, int]]:
    """Events of the demo clip: time, picture or samples, sampling rate or 0."""
    return read(demo_clip)
