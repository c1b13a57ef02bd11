"""URLs, from a real HTTP server on this machine: fine, missing, and one that never answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from media_files import write_wav

import merfast
from merfast.media import decode_pyav
from merfast.types import Failure, Prediction

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a folder with one file, `a.wav`."""
    t = np.arange(16_000) / 16_000
    write_wav(tmp_path / "a.wav", (0.3 * np.sin(2 * np.pi * 200 * t)).astype(np.float32))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_url_is_predicted_and_a_missing_one_named(site: str, tmp_path: Path) -> None:
    engine = merfast.Engine(detector="haar")
    urls = [f"{site}/a.wav", f"{site}/b.wav"]
    good, bad, local = engine.predict([*urls, tmp_path / "a.wav"], on_error="return")
    assert isinstance(good, Prediction)
    assert isinstance(local, Prediction)
    assert np.abs(good.probabilities - local.probabilities).max() <= 1e-5
    assert isinstance(bad, Failure)
    assert str(bad.error).startswith(f"{urls[1]}: cannot be read as media")
    assert "404" in str(bad.error)


def test_a_server_that_never_answers_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pyav, "OPEN_TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x.mp4"
        started = time.monotonic()
        with pytest.raises(merfast.MediaError, match="cannot be read as media"):
            merfast.Engine(detector="haar").predict([url])
        assert time.monotonic() - started < 20
