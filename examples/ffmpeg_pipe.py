"""Predict what FFmpeg or GStreamer writes to a pipe: a line of JSON for each window.

    ffmpeg -i ANYTHING -c:v rawvideo -pix_fmt yuv420p -c:a pcm_f32le -f nut - | python examples/ffmpeg_pipe.py

    gst-launch-1.0 -q uridecodebin uri=ANYTHING name=d  matroskamux name=m streamable=true ! fdsink \
        d. ! queue ! videoconvert ! video/x-raw,format=I420 ! m.  d. ! queue ! audioconvert ! m. | python ...

NUT and Matroska carry sound and picture with their times over one pipe, which raw video and WAV do not. Raw video costs
no second encoding; `-c copy` works as well, and has this program decode. Whatever else the left side can do (devices,
filters, `-re` for real time) needs nothing here.
"""

from __future__ import annotations

import argparse
import json
import sys

import av

from merfast import Engine, Failure, Prediction
from merfast.errors import MerfastError
from merfast.session import Session


def show(result: Prediction | Failure) -> None:
    print(json.dumps(result.to_dict()), flush=True)


def feed(session: Session, pipe: str, container_format: str | None) -> None:
    """Push all that comes through a pipe.

    Raises:
        av.FFmpegError: it is no media.
        MerfastError: the session does not take it.
    """
    with av.open(pipe, format=container_format) as container:
        tracks = [*container.streams.video[:1], *container.streams.audio[:1]]
        rate = container.streams.audio[0].rate if container.streams.audio else 0
        mono = av.AudioResampler(format="fltp", layout="mono", rate=rate or None)
        for frame in container.decode(*tracks):
            if isinstance(frame, av.AudioFrame):
                for block in mono.resample(frame):
                    session.push_audio(block.to_ndarray()[0], rate, block.time)
            elif isinstance(frame, av.VideoFrame) and frame.time is not None:
                session.push_frame(frame, frame.time)


def main() -> int:
    parser = argparse.ArgumentParser(description="Predict what FFmpeg or GStreamer writes to standard input.")
    parser.add_argument("--format", help="of the container, as FFmpeg calls it (default: as it finds)")
    parser.add_argument("--window", type=float, default=4.0, help="seconds (default %(default)g)")
    parser.add_argument("--hop", type=float, default=1.0, help="seconds between windows' starts (default %(default)g)")
    parser.add_argument("--smoothing", type=float, help="time constant in seconds (default: none)")
    parser.add_argument("--bundle", help="a bundle's folder (default: the packaged one)")
    parser.add_argument("--detector-model", help="YuNet's ONNX file (default: as the engine finds one)")
    parser.add_argument(
        "--live",
        action="store_true",
        help="the source does not wait: refuse windows that would come too late, rather than let the pipe fill up",
    )
    given = parser.parse_args()
    status = 0
    with Engine(given.bundle, detector_model=given.detector_model) as engine:
        session = engine.session(
            window=given.window,
            hop=given.hop,
            smoothing=given.smoothing,
            name="pipe",
            overload="reject" if given.live else "wait",
            on_result=show,
        )
        try:
            feed(session, "pipe:0", given.format)
        except (MerfastError, OSError, av.FFmpegError) as error:
            print(f"ffmpeg_pipe: {error}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            status = 130
        session.close()  # also where the pipe broke off: what came through is predicted
        engine.drain()
    return status


if __name__ == "__main__":
    sys.exit(main())
