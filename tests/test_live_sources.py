"""Live streams by URL: windows as of a recording, stalls, ends, and that whoever leaves takes everything along."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from live_servers import Pace, _Files, http_stream, send, serving, stream, transport_stream

import merfast
from merfast.media import decode_pyav, interrupt
from merfast.media.decode import AudioChunk, Event, open_media
from merfast.media.decode_pyav import PyAVMedia
from merfast.media.tracks import GivenFaces
from merfast.media.windows import Windower, WindowSpec
from merfast.pipeline import Prefetch
from merfast.types import SAMPLE_RATE

pytestmark = pytest.mark.filterwarnings("ignore::merfast.UntrainedWarning")

KINDS = ("http", "hls", "rtsp")


@pytest.fixture(scope="session")
def talk(face_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.5 s of MPEG-TS."""
    return transport_stream(face_clip, tmp_path_factory.mktemp("live") / "talk.ts")


@pytest.fixture(scope="session")
def recording(talk: Path) -> Path:
    """The first 15 s of a stream of it."""
    out = talk.with_name("recording.ts")
    send(talk, str(out), Pace(1e9, laps=6), format="mpegts")
    return out


@pytest.fixture(scope="module")
def engine() -> merfast.Engine:
    return merfast.Engine(detector="haar")


def handles() -> tuple[list[str], list[str]]:
    """Names of the threads, and what is open."""
    gc.collect()
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # that of the listing
            continue
    return sorted(t.name for t in threading.enumerate()), sorted(links)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_a_stream_are_those_of_its_recording(
    kind: str, engine: merfast.Engine, talk: Path, recording: Path, tmp_path: Path
) -> None:
    with serving(kind, talk, tmp_path, speed=3.0) as url:
        windows = engine.timeline(url, window=2.0, hop=1.0)
        live = list(islice(windows, 5))
        windows.close()  # type: ignore[attr-defined]
    assert [(p.start, p.end) for p in live] == [(float(k), k + 2.0) for k in range(5)]
    assert all(p.modalities == ("audio", "video") and p.source == url for p in live)
    assert all(not p.warnings for p in live)
    if kind == "hls":  # which is joined wherever it is
        return
    for a, b in zip(live, engine.timeline(recording, window=2.0, hop=1.0), strict=False):
        assert a.face_coverage == b.face_coverage
        assert np.abs(a.probabilities - b.probabilities).max() <= 1e-4


def test_a_stream_that_ends_has_a_last_window(engine: merfast.Engine, talk: Path) -> None:
    with http_stream(talk, Pace(5.0, laps=1)) as url:
        windows = list(engine.timeline(url, window=2.0, hop=1.0))
    assert [p.start for p in windows] == [0.0, 1.0]
    assert windows[-1].end == pytest.approx(2.5, abs=0.2)
    assert set(windows[-1].warnings) <= {"the connection was closed"}  # if FFmpeg takes it for more than the end


@pytest.mark.parametrize("kind", KINDS)
def test_a_stall_is_an_error_after_the_timeout(
    kind: str, engine: merfast.Engine, talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_pyav, "READ_TIMEOUT", 1.0)
    seen = []
    with (
        serving(kind, talk, tmp_path, speed=5.0, stall=4.0) as url,
        pytest.raises(merfast.MediaError, match=r"stops being readable after .* \(nothing came for 1 s\)") as caught,
    ):
        seen.extend(engine.timeline(url, window=1.0, hop=1.0))
    assert caught.value.source == url
    assert len(seen) >= 2


def test_a_reader_that_pauses_holds_the_stream_up(engine: merfast.Engine, talk: Path) -> None:
    """Nothing is read beyond what the bounded queues hold; then the connection itself is full."""
    pace = Pace(1e9)
    with http_stream(talk, pace) as url:
        windows = engine.timeline(url, window=2.0, hop=1.0)
        next(windows)
        before, until = -1.0, time.monotonic() + 60
        while pace.sent != before and time.monotonic() < until:
            before = pace.sent
            time.sleep(1.0)
        assert pace.sent == before
        following = [p.start for p in islice(windows, 30)]
        windows.close()  # type: ignore[attr-defined]
    assert following == [float(k) for k in range(1, 31)]


@pytest.mark.parametrize("only", ["video", "audio"])
def test_windows_come_when_one_track_stops(only: str, engine: merfast.Engine, talk: Path) -> None:
    with http_stream(talk, Pace(20.0), only) as url:
        media = open_media(url, name="live", decoder="pyav", frame_rate=5)
        reached = 0.0

        def watched() -> Iterator[Event]:
            nonlocal reached
            for event in media.events():
                heard = isinstance(event, AudioChunk)
                time = (event.start + len(event.samples)) / SAMPLE_RATE if heard else event.time
                reached = max(reached, time)
                yield event

        windower = Windower(
            media.info, GivenFaces(64), WindowSpec(2.0, 1.0), engine.bundle.config.preprocessing, every_face=False
        )
        cut = [(group[0], reached) for group in islice(windower.run(watched()), 8)]
        media.close()
    assert all(reached <= window.end + 3.0 for window, reached in cut)
    assert cut[-1][0].modalities == (only,)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_a_stream_do_not_wait_for_each_other(kind: str, talk: Path, tmp_path: Path) -> None:
    """With a thread for each picture they would; what has an end is read faster that way."""
    arguments = {"frame_rate": 5.0, "want_video": True, "threads": 4}
    with stream(kind, talk, tmp_path, Pace(5.0)) as url:
        media = PyAVMedia(url, "live", **arguments)
        assert str(media._video.thread_type) == "ThreadType.SLICE"
        assert media.info.lag < 5
        media.close()
    with _site(talk.parent) as address:
        media = PyAVMedia(f"{address}/{talk.name}", "file", **arguments)
        assert str(media._video.thread_type) == "ThreadType.AUTO"
        assert media.info.lag > 10
        media.close()


def _site(folder: Path):
    from contextlib import contextmanager
    from functools import partial
    from http.server import ThreadingHTTPServer

    @contextmanager
    def running() -> Iterator[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder))) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    return running()


# Leaving.


@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("stall", [9.0, 1e9], ids=["stalled", "running"])
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_a_stream_releases_all(
    kind: str, stall: float, how: str, engine: merfast.Engine, talk: Path, tmp_path: Path
) -> None:
    with serving(kind, talk, tmp_path, speed=3.0, stall=stall) as url:
        before = handles()
        windows = engine.timeline(url, window=1.0, hop=1.0)
        next(windows)
        during = handles()
        assert "merfast-prefetch" in during[0]
        assert len(during[1]) > len(before[1])
        if stall < 100:
            time.sleep(3.5)  # it has nothing to read now
        if how == "close":
            windows.close()  # type: ignore[attr-defined]
        del windows
        assert handles() == before


def test_a_connection_that_is_never_answered_is_left_at_once(engine: merfast.Engine) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/live.ts"
        (reader,) = engine._workers[0].readers([url], WindowSpec(1.0, 1.0), every_face=False)
        before = handles()
        stage = Prefetch(iter(reader), 4)
        client, _ = server.accept()
        stage.close()
        client.close()
        assert handles() == before  # long before `OPEN_TIMEOUT`


def test_others_keep_their_clock() -> None:
    """Only threads that were told to end see another one, and only inside PyAV."""
    from av.container import core

    interrupt.prepare()
    interrupt.prepare()
    clock = core.time
    assert clock is not time
    assert clock.sleep is time.sleep
    assert abs(clock.monotonic() - time.monotonic()) < 60
    told = threading.Event()
    with interrupt.interruptible(told.is_set):
        assert abs(clock.monotonic() - time.monotonic()) < 60
        told.set()
        moments = [clock.monotonic() for _ in range(3)]
        assert all(b - a > 1e5 for a, b in pairwise(moments))
        other: list[float] = []
        thread = threading.Thread(target=lambda: other.append(clock.monotonic() - time.monotonic()))
        thread.start()
        thread.join()
        assert abs(other[0]) < 60
    assert not interrupt.told_to_end()
    assert abs(clock.monotonic() - time.monotonic()) < 60


_WATCH = """
    import gc, os, signal, sys, threading
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as a terminal leaves it, whatever was inherited
    sys.path.insert(0, {tests!r})
    from test_live_sources import handles
    import merfast
    engine = merfast.Engine(detector="haar")
    list(engine.timeline({file!r}, window=1.0))
    before = handles()
    try:
        for window in engine.timeline({url!r}, window=1.0, hop=1.0):
            print("window", flush=True)
    except KeyboardInterrupt:
        pass
    after = handles()
    print("left", *(set(after[0]) - set(before[0])), *(set(after[1]) - set(before[1])))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_program_has_nothing_left_open(kind: str, talk: Path, tmp_path: Path) -> None:
    with serving(kind, talk, tmp_path, speed=3.0, stall=4.0) as url:
        code = textwrap.dedent(_WATCH).format(tests=str(Path(__file__).parent), file=str(talk), url=url)
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "window\n"
            time.sleep(1.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "left"
