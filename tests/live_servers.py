"""Live streams for tests, from real servers on this machine: endless MPEG-TS over HTTP, HLS, and RTSP.

`python live_servers.py KIND FILE FOLDER SPEED STALL` serves in a process of its own until its standard input is closed:
then what is open in a test's process is the client's alone. `serving` starts one.
"""

from __future__ import annotations

import math
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av

GROUP = 10
"""Pictures from one that stands for itself to the next: a stream can be joined there, and cut into segments."""

GONE = (OSError, av.FFmpegError, av.error.PyAVCallbackError)
"""What a muxer raises when its client has gone."""


def transport_stream(clip: Path, out: Path, **options: str) -> Path:
    """A clip as MPEG-TS, with H.264 in groups of `GROUP` pictures and AAC."""
    with av.open(str(clip)) as source, av.open(str(out), "w", format="mpegts") as target:
        picture, sound = source.streams.video[0], source.streams.audio[0]
        video = target.add_stream("libx264", rate=picture.average_rate)
        video.width, video.height, video.pix_fmt = picture.width, picture.height, "yuv420p"
        video.codec_context.gop_size = GROUP
        video.options = {"preset": "veryfast", "crf": "23", "tune": "zerolatency", **options}
        audio = target.add_stream("aac", rate=sound.rate, layout="mono")
        for frame in source.decode(picture, sound):
            if isinstance(frame, av.VideoFrame):
                frame.pict_type = 0  # for the encoder to choose
                target.mux(video.encode(frame))
            else:
                target.mux(audio.encode(frame))
        target.mux(video.encode(None))
        target.mux(audio.encode(None))
    return out


class Pace:
    """When what is sent is due.

    Args:
        speed: how much faster than real time the stream is sent.
        stall: seconds of the stream after which nothing more comes, though connections stay open.
        laps: how often it is sent before it ends.
    """

    def __init__(self, speed: float = 1.0, stall: float = math.inf, laps: int = 1_000_000) -> None:
        self.speed, self.stall, self.laps = speed, stall, laps
        self.over = threading.Event()
        self.sent = 0.0  # seconds of the stream, to the client that is the furthest

    def due(self, started: float, at: float) -> bool:
        """Wait until second `at` of a stream that began at `started`; False when all is to end."""
        while not self.over.is_set():
            left = started + at / self.speed - time.monotonic()
            if left <= 0 and at < self.stall:
                self.sent = max(self.sent, at)
                return True
            self.over.wait(min(max(left, 0.005), 0.05))
        return False


def send(source: Path, target: Any, pace: Pace, only: str = "", **options: Any) -> None:
    """Mux a transport stream over and over, at its pace; `target` and options are `av.open`'s.

    Args:
        only: the track that goes on after 2 seconds, if not both do: "video" or "audio".
    """
    started = time.monotonic()
    with av.open(target, "w", **options) as out:
        streams: dict[int, Any] = {}
        for packet, at in packets(source, pace.laps):
            if not streams:
                streams = {s.index: out.add_stream_from_template(s) for s in packet.stream.container.streams}
            if not pace.due(started, at):
                return
            if not only or at < 2.0 or packet.stream.type == only:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)


def packets(source: Path, laps: int) -> Iterator[tuple[Any, float]]:
    """Packets of a file, over and over with times that rise, and when each is due in seconds."""
    with av.open(str(source)) as container:
        read = [p for p in container.demux() if p.dts is not None]
        stamps = [(p.dts, p.pts, p.time_base) for p in read]
        first = min(float(d * b) for d, _, b in stamps)
        length = 0.04 + max(float(d * b) for d, _, b in stamps) - first
        for lap in range(laps):
            for packet, (dts, pts, base) in zip(read, stamps, strict=True):
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = packet.stream, base, packet.is_keyframe
                shift = round(lap * length / base)
                copy.dts, copy.pts = dts + shift, pts + shift
                yield copy, float(dts * base) - first + lap * length


class _Write:
    """A file to write to that hands everything on."""

    def __init__(self, write: Callable[[bytes], Any]) -> None:
        self._write = write

    def write(self, data: bytes) -> int:
        self._write(bytes(data))
        return len(data)


class _Stream(BaseHTTPRequestHandler):
    """Sends the same transport stream to whoever asks, without end and without a length."""

    def __init__(self, source: Path, pace: Pace, only: str, *arguments: Any) -> None:
        self._source, self._pace, self._only = source, pace, only
        super().__init__(*arguments)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "video/mp2t")
        self.send_header("Connection", "close")  # else its end is an error to FFmpeg
        self.end_headers()
        # A client that goes away shows as an error of the muxer.
        with suppress(*GONE):
            out = _Write(self.wfile.write)
            send(self._source, out, self._pace, self._only, format="mpegts", options={"flush_packets": "1"})

    def log_message(self, *arguments: object) -> None:
        pass


class _Files(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _serving(server: socketserver.BaseServer, pace: Pace, *more: threading.Thread) -> Iterator[None]:
    threads = [threading.Thread(target=server.serve_forever, args=(0.05,)), *more]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        pace.over.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()


@contextmanager
def http_stream(source: Path, pace: Pace, only: str = "") -> Iterator[str]:
    """The address of a transport stream."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Stream, source, pace, only))
    with _serving(server, pace):
        yield f"http://127.0.0.1:{server.server_port}/live.ts"


@contextmanager
def hls_stream(source: Path, folder: Path, pace: Pace) -> Iterator[str]:
    """The address of a playlist that grows, and whose old segments are deleted."""
    options = {"hls_time": "0.4", "hls_list_size": "6", "hls_flags": "delete_segments+omit_endlist"}
    playlist = folder / "live.m3u8"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(folder)))
    writer = threading.Thread(
        target=send, args=(source, str(playlist), pace), kwargs={"format": "hls", "options": options}
    )
    with _serving(server, pace, writer):
        while not playlist.exists():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.server_port}/live.m3u8"


class _Camera(socketserver.StreamRequestHandler):
    """A small RTSP server (RFC 2326): one stream, MPEG-TS in RTP (RFC 2250), inside the TCP connection.

    It knows no UDP, so that clients have to ask for TCP.
    """

    SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
    server: Any

    def handle(self) -> None:
        self._number, self._buffer, self._started = 0, b"", time.monotonic()
        while not self.server.pace.over.is_set():
            lines = list(iter(lambda: self.rfile.readline().strip(), b""))
            if not lines:
                return
            method = lines[0].split()[0].decode()
            fields = dict(line.decode().split(": ", 1) for line in lines[1:])
            self._answer(method, fields)
            if method == "PLAY":
                with suppress(*GONE):
                    send(self.server.source, _Write(self._rtp), self.server.pace, format="mpegts")
                return

    def _answer(self, method: str, fields: dict[str, str]) -> None:
        answer, body, status = {"CSeq": fields["CSeq"]}, "", "200 OK"
        if method == "OPTIONS":
            answer["Public"] = "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"
        elif method == "DESCRIBE":
            body, answer["Content-Type"] = self.SDP, "application/sdp"
            answer["Content-Length"] = str(len(body))
        elif method == "SETUP" and "TCP" in fields["Transport"]:
            answer |= {"Session": "1", "Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"}
        elif method == "SETUP":
            status = "461 Unsupported Transport"
        else:
            answer["Session"] = "1"
        head = "".join(f"{name}: {value}\r\n" for name, value in answer.items())
        self.wfile.write(f"RTSP/1.0 {status}\r\n{head}\r\n{body}".encode())

    def _rtp(self, data: bytes) -> None:
        self._buffer += data
        size = 7 * 188
        while len(self._buffer) >= size:
            payload, self._buffer = self._buffer[:size], self._buffer[size:]
            ticks = round((time.monotonic() - self._started) * 90_000) & 0xFFFF_FFFF
            head = bytes([0x80, 33]) + self._number.to_bytes(2, "big") + ticks.to_bytes(4, "big") + b"\0\0\0\1"
            self._number = (self._number + 1) & 0xFFFF
            packet = head + payload
            self.wfile.write(b"$\0" + len(packet).to_bytes(2, "big") + packet)


class _Cameras(socketserver.ThreadingTCPServer):
    allow_reuse_address = True

    def __init__(self, source: Path, pace: Pace) -> None:
        self.source, self.pace = source, pace
        super().__init__(("127.0.0.1", 0), _Camera)


@contextmanager
def rtsp_stream(source: Path, pace: Pace) -> Iterator[str]:
    """The address of a camera."""
    server = _Cameras(source, pace)
    with _serving(server, pace):
        yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"


def stream(kind: str, source: Path, folder: Path, pace: Pace) -> AbstractContextManager[str]:
    """The address of a live stream: "http", "hls" or "rtsp"."""
    if kind == "hls":
        return hls_stream(source, folder, pace)
    return {"http": http_stream, "rtsp": rtsp_stream}[kind](source, pace)


@contextmanager
def serving(kind: str, source: Path, folder: Path, speed: float = 1.0, stall: float = math.inf) -> Iterator[str]:
    """The same, served by another process."""
    command = [sys.executable, __file__, kind, str(source), str(folder), str(speed), str(stall)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    what, file, place, fast, until = sys.argv[1:]
    with stream(what, Path(file), Path(place), Pace(float(fast), float(until))) as address:
        print(address, flush=True)
        sys.stdin.read()
