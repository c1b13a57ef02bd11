"""Fetching the YuNet detector: only the right bytes get into the cache, and nothing leaves this machine here."""

import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest

from merfast.errors import UnavailableError
from merfast.media import yunet

CONTENT = b"not the detector, but as good as one here"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and `CONTENT` in the role of the detector."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(yunet.platformdirs, "user_cache_path", lambda name: folder / name)
    monkeypatch.setattr(yunet, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return folder / "merfast"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/model")
            self.end_headers()
            return
        body = {"/model": CONTENT, "/other": b"<html>", "/short": CONTENT[:-9], "/huge": bytes(3 << 20)}.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"") + 10 * (self.path == "/short")))
        self.end_headers()
        try:
            self.wfile.write(body or b"")
        except ConnectionError:
            assert self.path == "/huge"

    def log_message(self, *args):
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.asked = []
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def left_in(cache) -> list[str]:
    return sorted(p.name for p in cache.iterdir()) if cache.exists() else []


def test_download_once(server, cache):
    assert yunet.cached() is None
    path = yunet.fetch(url=f"{server.url}/moved")
    assert path == yunet.cache_file() == yunet.cached()
    assert path.read_bytes() == CONTENT
    assert left_in(cache) == [path.name]
    assert yunet.fetch(url=f"{server.url}/moved") == path
    assert server.asked == ["/moved", "/model"]


@pytest.mark.parametrize("page", ["other", "huge", "short"])
def test_wrong_bytes_are_refused(server, cache, page):
    with pytest.raises(UnavailableError, match=f"{page}: is not .* got sha256 .* expected {yunet.SHA256}"):
        yunet.fetch(url=f"{server.url}/{page}")
    assert left_in(cache) == []
    assert yunet.cached() is None


def test_missing_page(server):
    with pytest.raises(UnavailableError, match=r"404|Not Found"):
        yunet.fetch(url=f"{server.url}/gone")


def test_offline_names_the_other_way():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/model"
        with pytest.raises(UnavailableError, match="--from FILE") as error:
            yunet.fetch(url=url)
    assert url in str(error.value)
    assert "refused" in str(error.value)


def test_silent_server_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnavailableError, match="timed out"):
        yunet.fetch(url=f"http://127.0.0.1:{silent.getsockname()[1]}/model", timeout=0.2)


def test_from_file(tmp_path, cache):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(CONTENT)
    assert yunet.fetch(copy).read_bytes() == CONTENT
    copy.write_bytes(CONTENT + b"!")
    with pytest.raises(UnavailableError, match=r"copy\.onnx: is not face_detection.*got sha256"):
        yunet.fetch(copy)
    assert yunet.cached() is not None  # the good one stays
    with pytest.raises(UnavailableError, match=r"none\.onnx: cannot be read \(No such file"):
        yunet.fetch(tmp_path / "none.onnx")
    with pytest.raises(UnavailableError, match="cannot be read"):
        yunet.fetch(tmp_path)


def test_damaged_cache_is_not_used_and_is_replaced(server, cache):
    path = yunet.fetch(url=f"{server.url}/model")
    path.write_bytes(b"damaged")
    assert yunet.cached() is None
    assert yunet.fetch(url=f"{server.url}/model").read_bytes() == CONTENT


def test_cache_that_cannot_be_written(tmp_path, monkeypatch, server):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(yunet.platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(UnavailableError, match="cannot be written"):
        yunet.fetch(url=f"{server.url}/model")


def test_the_network_is_guarded():
    with pytest.raises(pytest.fail.Exception, match=r"tried to reach 'example\.invalid'"):
        socket.create_connection(("example.invalid", 80), timeout=1)
    with socket.socket() as out, pytest.raises(pytest.fail.Exception, match=r"192\.0\.2\.1"):
        out.connect(("192.0.2.1", 80))


def test_real_detector(yunet_model, monkeypatch):
    monkeypatch.undo()  # the real checksum; the cache is not touched
    assert hashlib.sha256(yunet_model.read_bytes()).hexdigest() == yunet.SHA256
