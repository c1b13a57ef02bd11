"""Reports in a real browser: seeking, playing, keys, faces, an hour, colours, and what the page asks for."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import write_video, write_wav

from benchmarks.report_inputs import DRAWN, browser, find_browser, synthetic
from merfast.attention import Attention, StreamAttention
from merfast.palette import EMOTION_COLOURS, MODALITY_COLOURS, rgb
from merfast.report import write_report
from merfast.types import EMOTIONS, Prediction

SECONDS = 8.0


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'merfast[dev]'")
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium): pages of reports are NOT tested")
    with browser(executable) as running:
        yield running


class Opened:
    """A page, with what it asked for and complained of."""

    def __init__(self, page: Any) -> None:
        self.page, self.requests, self.errors, self.expected = page, [], [], set()
        self.scripted = True
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self._said(message.type, message.text))

    def _said(self, kind: str, text: str) -> None:
        # The one warning is about this test, which reads canvases.
        if kind in ("error", "warning") and "willReadFrequently" not in text:
            self.errors.append(text)

    def until(self, condition: str) -> None:
        """Wait for it, asking from outside: the page's policy forbids evaluating text within it."""
        for _ in range(400):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        pytest.fail(f"never became true: {condition}")

    def text(self, place: str) -> str:
        """As it is once what was asked for before has been drawn."""
        if self.scripted:
            self.page.evaluate(DRAWN)
        return str(self.page.inner_text(place)).replace("\u00a0", " ")

    def media_ready(self) -> None:
        self.until("document.getElementById('media').readyState >= 2")

    @property
    def time(self) -> float:
        """Of the media, once they are where the page says."""
        self.until("""(() => {
            const media = document.getElementById("media"), said = document.getElementById("timeline").ariaValueNow;
            return !media.seeking && Math.abs(media.currentTime - Number(said)) <= 0.0501;
        })()""")
        return float(self.page.evaluate("document.getElementById('media').currentTime"))

    @property
    def area(self) -> dict[str, float]:
        """Of the first lane, in pixels of the page's view."""
        box = self.page.locator(".lane canvas").first.bounding_box()
        return dict(box)

    @property
    def cursor(self) -> float:
        """Where the cursor is over the lanes, from 0 to 1."""
        self.page.evaluate(DRAWN)
        box = self.page.locator("#cursor").bounding_box()
        # The middle of its border, which is 2 pixels wide.
        return float((box["x"] + 1 - self.area["x"]) / self.area["width"])

    def click(self, part: float, lane: int = 0) -> None:
        box = self.page.locator(".lane canvas").nth(lane).bounding_box()
        self.page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)

    def colour(self, lane: int, part: float, height: float) -> tuple[int, ...]:
        """Of a pixel of a lane's canvas, from the left and from the top."""
        self.page.evaluate(DRAWN)
        script = """([lane, x, y]) => {
            const canvas = document.querySelectorAll(".lane canvas")[lane];
            const [w, h] = [canvas.width, canvas.height];
            return [...canvas.getContext("2d").getImageData(Math.floor(x * w), Math.floor(y * h), 1, 1).data];
        }"""
        return tuple(self.page.evaluate(script, [lane, part, height]))[:3]


@pytest.fixture
def opened(chromium: Any) -> Iterator[Callable[..., Opened]]:
    """Opens a page; in the end, none may have complained or asked for anything but itself."""
    there: list[Opened] = []

    def open_page(file: Path | str, *linked: str, complaints: bool = False, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": 1200, "height": 900}, **options)
        context.set_default_timeout(20_000)
        page = Opened(context.new_page())
        page.scripted = options.get("java_script_enabled", True)
        url = file if isinstance(file, str) else file.resolve().as_uri()
        page.page.goto(url)
        page.expected = {url, *linked}
        if not complaints:
            there.append(page)
        return page

    yield open_page
    for page in there:
        assert page.errors == []
        assert {r for r in page.requests if not r.startswith(("data:", "blob:"))} == page.expected


def window(k: float, emotion: str, valence: float, length: float = 1.0, **changes: Any) -> Prediction:
    values = np.full(6, 0.02, dtype=np.float32)
    values[EMOTIONS.index(emotion)] = 0.9
    p = Prediction("a.mp4", k, k + length, emotion, values, valence, ("audio", "video"), 1.0, track=0)
    return replace(p, **changes)


def empty(k: float) -> Prediction:
    nothing, missing = np.full(6, np.nan, dtype=np.float32), {"audio": "silent", "video": "no face found"}
    return Prediction("a.mp4", k, k + 1.0, None, nothing, float("nan"), (), 0.0, missing)


def halves() -> list[Prediction]:
    """Happy for four seconds, then sad; nothing in the last one."""
    moods = [window(k, "happy", 3.0) if k < 4 else window(k, "sad", -2.0) for k in range(7)]
    return [*moods, empty(7)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 s of greys that rise, with a tone."""
    pictures = [np.full((90, 160, 3), i, dtype=np.uint8) for i in range(200)]
    tone = (0.05 * np.sin(np.arange(int(16_000 * SECONDS)) / 20)).astype(np.float32)
    return write_video(tmp_path_factory.mktemp("clip") / "a.mp4", pictures, fps=25, audio=tone)


@pytest.fixture(scope="module")
def page_file(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("page") / "r.html", clip, halves())


def test_page_opens_with_its_video(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    assert view.page.title() == "a.mp4 - emotion and valence"
    assert view.page.evaluate("document.getElementById('media').duration") == pytest.approx(SECONDS, abs=0.1)
    assert view.page.evaluate("document.getElementById('media').videoWidth") == 160
    assert view.text("#verdict") == "happy, 90 %"
    assert view.text("#valence") == "Valence +3.00"
    assert view.page.locator(".moment img").count() == view.page.locator(".moment").count() > 0
    assert view.page.evaluate("[...document.querySelectorAll('.moment img')].every(i => i.naturalWidth === 160)")


def test_click_seeks(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    for part in (0.1, 0.8, 0.45):
        view.click(part, lane=1)
        assert view.time == pytest.approx(part * SECONDS, abs=0.02)
        assert view.cursor == pytest.approx(part, abs=0.003)
        assert view.text("#verdict") == ("happy, 90 %" if part < 0.5 else "sad, 90 %")
    view.click(0.95)
    assert view.text("#verdict") == "nothing to go by"
    assert "no voice: silent; no face: no face found" in view.text("#used")
    moment = view.page.locator(".moment").last
    moment.click()
    assert view.time == pytest.approx(float(moment.get_attribute("data-time")), abs=0.001)


def test_keys_seek_and_play(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    keys = view.page.keyboard
    for key, time in (
        *(("ArrowRight", 1.0), ("ArrowRight", 2.0), ("ArrowLeft", 1.0), ("ArrowLeft", 0.0), ("ArrowLeft", 0.0)),
        *(("Shift+ArrowRight", SECONDS), ("Home", 0.0), ("End", SECONDS), ("Shift+ArrowLeft", 0.0)),
    ):
        keys.press(key)
        assert view.time == pytest.approx(time, abs=0.01), key
    keys.press(" ")
    view.until("document.getElementById('media').currentTime > 0.5")
    keys.press(" ")
    view.until("document.getElementById('media').paused")
    stopped = view.time
    view.page.wait_for_timeout(200)
    assert view.time == stopped


def test_cursor_moves_while_playing_and_only_then_is_drawn(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    view.page.keyboard.press(" ")
    places = []
    for _ in range(5):
        view.page.wait_for_timeout(150)
        places.append(view.cursor)
    assert all(np.diff(places) > 0)
    view.page.keyboard.press(" ")
    assert view.cursor == pytest.approx(view.time / SECONDS, abs=0.003)
    # Nothing is asked for from now on: a page that is only read costs nothing.
    view.page.evaluate("""() => {
        window.frames_ = 0;
        const real = requestAnimationFrame;
        window.requestAnimationFrame = (f) => { window.frames_++; return real(f); };
    }""")
    view.page.wait_for_timeout(300)
    assert view.page.evaluate("window.frames_") == 0


def test_lanes_show_the_predictions(opened: Callable[..., Opened], tmp_path: Path) -> None:
    results = halves()
    marks = np.linspace(0, 1, 11)
    spans = np.stack([marks[:-1], marks[1:]], axis=1)
    weights = np.eye(10, dtype=np.float32)[7]
    results[0] = replace(results[0], attention=Attention({"face": StreamAttention("video", 1.0, spans, weights)}))
    results[1] = replace(results[1], modalities=("video",), missing={"audio": "silent"})
    view = opened(write_report(tmp_path / "r.html", "a.mp4", results, media="none"))
    labels = view.page.locator(".lane > span").all_inner_texts()
    order = [re.sub(r"[\d%+\s\u2212]", "", text) for text in labels]
    assert order == ["Emotions", "Valence", "Attentiontoface", "Faceseen", "Voiceheard", ""]
    assert view.colour(0, 0.3, 0.5) == rgb(EMOTION_COLOURS["happy"])
    assert view.colour(0, 0.7, 0.5) == rgb(EMOTION_COLOURS["sad"])
    assert view.colour(0, 0.95, 0.5) not in {rgb(c) for c in EMOTION_COLOURS.values()}
    lane = view.colour(1, 0.3, 0.6)
    assert view.colour(1, 0.3, 0.35) != lane != view.colour(1, 0.7, 0.65)  # 3 is above the middle, -2 below
    assert view.colour(1, 0.7, 0.35) == lane
    assert view.colour(2, 0.75 / 8, 0.9) == rgb(MODALITY_COLOURS["video"])
    assert view.colour(2, 0.3 / 8, 0.9) != rgb(MODALITY_COLOURS["video"]) != view.colour(2, 3 / 8, 0.9)
    assert view.colour(3, 1.5 / 8, 0.5) == rgb(MODALITY_COLOURS["video"])
    assert view.colour(4, 0.5 / 8, 0.5) == rgb(MODALITY_COLOURS["audio"])
    assert view.colour(4, 1.5 / 8, 0.5) != rgb(MODALITY_COLOURS["audio"])
    # One emotion alone stands on the floor.
    view.page.get_by_role("button", name="sad", exact=True).click()
    assert view.colour(0, 0.3, 0.5) != rgb(EMOTION_COLOURS["happy"])
    assert view.colour(0, 0.7, 0.9) == rgb(EMOTION_COLOURS["sad"])


def test_faces_are_chosen(opened: Callable[..., Opened], tmp_path: Path) -> None:
    results = halves()[:7]
    for k in (4, 5):
        results[k] = replace(results[k], others=(window(k, "angry", -4.0, track=5),))
    view = opened(write_report(tmp_path / "r.html", "a.mp4", results, media="none"))
    assert view.page.locator("#face option").all_inner_texts() == [
        "Main face",
        "Face 0, 0:00\N{EN DASH}0:07",
        "Face 5, 0:04\N{EN DASH}0:06",
    ]
    view.click(4.5 / 7)
    assert view.text("#verdict") == "sad, 90 %"
    view.page.select_option("#face", label="Face 5, 0:04\N{EN DASH}0:06")
    assert view.text("#verdict") == "angry, 90 %"
    assert view.colour(0, 4.5 / 7, 0.5) == rgb(EMOTION_COLOURS["angry"])
    view.click(1 / 7)
    assert view.text("#verdict") == "not in view"
    view.page.select_option("#face", "0")
    assert view.text("#verdict") == "happy, 90 %"


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = synthetic(3603, faces=4, explain=True)
    return write_report(tmp_path_factory.mktemp("hour") / "r.html", "a.mp4", results, media="none")


def test_an_hour_is_drawn_in_columns_and_not_window_by_window(opened: Callable[..., Opened], hour: Path) -> None:
    view = opened(hour)
    view.page.evaluate("""() => {
        window.drawn = 0;
        for (const name of ["fillRect", "lineTo", "fill", "stroke", "strokeText"]) {
            const real = CanvasRenderingContext2D.prototype[name];
            CanvasRenderingContext2D.prototype[name] = function (...a) { window.drawn++; return real.apply(this, a); };
        }
    }""")
    view.page.click("#in")
    view.page.click("#out")
    view.page.evaluate("window.drawn = 0")
    view.page.set_viewport_size({"width": 1201, "height": 900})  # the whole, drawn anew
    view.page.evaluate(DRAWN)
    whole = view.page.evaluate("window.drawn")
    columns = view.area["width"] / 3
    # Some 20 for each column, and the page may be drawn twice; window by window it would be 43,000 at least.
    assert 3 * columns < whole < 50 * columns < 20_000
    for _ in range(8):
        view.page.click("#in")
    view.page.evaluate(DRAWN)
    view.page.evaluate("window.drawn = 0")
    view.page.click("#in")
    view.page.evaluate(DRAWN)
    assert 0 < view.page.evaluate("window.drawn") < 1500  # a few windows, and what does not depend on them


def test_an_hour_zooms_moves_and_seeks(opened: Callable[..., Opened], hour: Path) -> None:
    view = opened(hour)
    assert "means of up to" in view.text("#range")
    view.click(0.5)
    for _ in range(6):
        view.page.click("#in")
    # 3603 s / 2 ** 6 around the cursor.
    assert view.text("#range") == "29:33 \N{EN DASH} 30:30 of 1:00:03"
    box = view.area
    y = box["y"] + 20
    view.page.mouse.move(box["x"] + 600, y)
    view.page.mouse.down()
    view.page.mouse.move(box["x"] + 600 - box["width"] / 2, y, steps=5)
    view.page.mouse.up()
    assert view.text("#range") == "30:02 \N{EN DASH} 30:58 of 1:00:03"
    assert "30:01.5" in view.text("#when")  # dragging does not seek
    view.click(0.5)
    assert re.match(r"30:29\.[5-9]|30:30\.[0-2]", view.text("#when"))
    view.page.keyboard.press("Home")
    assert view.text("#when").startswith("0:00.0")
    assert view.cursor >= 0  # it was followed
    assert view.page.evaluate("Number(document.querySelector('#timeline').ariaValueNow)") == 0
    view.page.locator("#overview").click(position={"x": box["width"] / 2, "y": 10})
    assert view.text("#range").startswith("29:3")
    view.page.click("#all")
    assert "of 1:00:03" not in view.text("#range")
    view.page.locator(".lane canvas").first.hover()
    view.page.keyboard.down("Control")
    view.page.mouse.wheel(0, -60)
    view.page.keyboard.up("Control")
    assert re.search(r"\d+:\d\d \N{EN DASH} \d+:\d\d of", view.text("#range"))


def test_zoom_keys_belong_to_the_timeline(opened: Callable[..., Opened], hour: Path) -> None:
    view = opened(hour)
    view.page.keyboard.press("+")
    assert "of 1:00:03" not in view.text("#range")
    view.page.focus("#timeline")
    view.page.keyboard.press("+")
    assert view.text("#range").endswith("0:00 \N{EN DASH} 30:02 of 1:00:03")
    view.page.keyboard.press("0")
    assert "of 1:00:03" not in view.text("#range")


def test_tab_reaches_everything_in_order_with_a_visible_focus(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    order = []
    for _ in range(40):
        view.page.keyboard.press("Tab")
        found = view.page.evaluate("""() => {
            const on = document.activeElement, style = getComputedStyle(on);
            return [on.id || on.className || on.tagName, on.tagName === "VIDEO" || parseFloat(style.outlineWidth) >= 3];
        }""")
        order.append(found[0])
        assert found[1], f"no visible focus on {found[0]}"
        if found[0].startswith("moment"):
            break
    kept = list(dict.fromkeys(order))
    places = [kept.index(name) for name in ("skip", "theme", "media", "timeline")]
    assert places == sorted(places)
    assert kept[-1].startswith("moment")


def test_screen_readers_are_told(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    view.page.keyboard.press("End")
    view.until("document.getElementById('live').textContent.includes('nothing')")
    view.click(5.5 / 8)
    view.until("document.getElementById('live').textContent !== '0:08: nothing to go by'")
    assert view.text("#live") == "0:06: sad 90 %, valence -2.0"
    slider = view.page.get_by_role("slider", name="Position in the video")
    attributes = [slider.get_attribute(f"aria-{name}") for name in ("valuemin", "valuemax", "valuenow", "valuetext")]
    assert attributes == ["0.0", "8.0", "5.5", "0:05.5 of 0:08"]
    unnamed = view.page.evaluate(
        "[...document.querySelectorAll('button, select, [role=slider], [role=region]')]"
        ".filter(e => !e.textContent.trim() && !e.ariaLabel).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button(opened: Callable[..., Opened], page_file: Path, scheme: str) -> None:
    def paper() -> float:
        colour = view.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return float(np.mean([int(n) for n in re.findall(r"\d+", colour)[:3]]))

    view = opened(page_file, color_scheme=scheme)
    view.page.evaluate(DRAWN)
    lane = np.mean(view.colour(1, 0.3, 0.9))
    assert (paper() < 60) == (scheme == "dark") == (lane < 60)
    view.page.click("#theme")
    assert (paper() > 200) == (scheme == "dark") == (np.mean(view.colour(1, 0.3, 0.9)) > 200)
    view.page.emulate_media(color_scheme=scheme)  # what the reader chose stays
    assert (paper() > 200) == (scheme == "dark")


def test_page_is_readable_without_scripts(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file, java_script_enabled=False)
    assert view.page.locator("#summary table").is_visible()
    assert "need JavaScript" in view.text("noscript")
    assert view.page.locator(".moment img").first.is_visible()
    assert not view.page.locator("#timeline").is_visible()
    assert not view.page.locator("#theme").is_visible()
    assert not view.page.locator("#press").is_visible()


def test_page_prints(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file, color_scheme="dark")
    view.media_ready()
    assert len(view.page.pdf()) > 20_000
    view.page.emulate_media(media="print")
    assert view.page.locator("#timeline").is_visible()
    assert view.page.locator("#summary table").is_visible()
    for place in ("#stage", "#theme", "#in", "#keys"):
        assert not view.page.locator(place).is_visible(), place
    view.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert np.mean(view.colour(1, 0.3, 0.9)) > 200  # on paper, the lanes are light
    view.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert np.mean(view.colour(1, 0.3, 0.9)) < 60


def test_names_run_nothing(opened: Callable[..., Opened], clip: Path, tmp_path: Path) -> None:
    evil = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\u2028 é 顔"
    results = [replace(p, source=evil, warnings=(evil,)) for p in halves()]
    results[0] = replace(results[0], missing={"audio": evil}, modalities=("video",))
    video = tmp_path / "<img src=x onerror=window.hacked=1>\"'&é顔.mp4"
    video.write_bytes(clip.read_bytes())
    view = opened(write_report(tmp_path / "r.html", video, results))
    view.media_ready()
    assert view.text("h1") == video.name
    assert f"no voice: {evil}".replace("\u2028", "") in view.text("#used").replace("\u2028", "").replace("  ", " ")
    assert view.page.evaluate("window.hacked") is None
    assert view.page.evaluate("document.scripts.length") == 2
    # And what somebody writes into the page afterwards does not run either.
    late = "<img src=data:,x onerror='window.hacked = 1'>"
    view.page.evaluate("text => document.body.insertAdjacentHTML('beforeend', text)", late)
    view.page.wait_for_timeout(200)
    assert view.page.evaluate("window.hacked") is None
    view.errors.clear()  # the policy's complaint about it


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_linked_video_plays_from_a_folder_and_from_a_server(
    opened: Callable[..., Opened], clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "a b#1.mp4").write_bytes(clip.read_bytes())
    page = write_report(tmp_path / "r.html", tmp_path / "a b#1.mp4", halves(), media="link")
    view = opened(page, (tmp_path / "a b#1.mp4").as_uri())
    view.media_ready()
    view.click(0.7)
    assert view.text("#verdict") == "sad, 90 %"
    with served(tmp_path) as address:
        view = opened(f"{address}/r.html", f"{address}/a%20b%231.mp4")
        view.media_ready()


def test_timeline_works_without_the_linked_video(opened: Callable[..., Opened], clip: Path, tmp_path: Path) -> None:
    video = tmp_path / "gone.mp4"
    video.write_bytes(clip.read_bytes())
    page = write_report(tmp_path / "r.html", video, halves(), media="link")
    video.unlink()
    view = opened(page, complaints=True)
    view.page.wait_for_selector("#trouble:not([hidden])")
    assert "cannot play" in view.text("#trouble")
    view.click(0.7)
    assert view.text("#verdict") == "sad, 90 %"


def test_what_was_repacked_or_transcoded_plays(opened: Callable[..., Opened], tmp_path: Path) -> None:
    pictures = [np.full((90, 160, 3), 40 + 8 * i, dtype=np.uint8) for i in range(20)]
    tone = (0.05 * np.sin(np.arange(32_000) / 20)).astype(np.float32)
    repacked = write_video(tmp_path / "a.mkv", pictures, fps=10, audio=tone)
    transcoded = write_video(tmp_path / "b.avi", pictures, fps=10, audio=tone, codec="mpeg4", audio_codec="mp2")
    webm = write_video(tmp_path / "c.webm", pictures, fps=10, codec="libvpx")
    for video in (repacked, transcoded, webm):
        view = opened(write_report(tmp_path / "r.html", video, halves()[:2]))
        view.media_ready()
        assert view.page.evaluate("document.getElementById('media').duration") == pytest.approx(2, abs=0.15), video
        for time, grey in ((0.05, 40), (1.05, 120)):
            view.page.evaluate("time => { document.getElementById('media').currentTime = time; }", time)
            # The picture may come a little after the seek is said to be done.
            view.until(f"""(() => {{
                const pen = new OffscreenCanvas(1, 1).getContext("2d");
                pen.drawImage(document.getElementById("media"), 0, 0, 1, 1);
                return Math.abs(pen.getImageData(0, 0, 1, 1).data[0] - {grey}) <= 8;
            }})()""")


def test_sound_alone_plays(opened: Callable[..., Opened], tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "a.wav", 0.05 * np.sin(np.arange(16_000 * 8) / 20))
    results = [replace(p, modalities=("audio",), track=None, missing={"video": "no video track"}) for p in halves()[:7]]
    view = opened(write_report(tmp_path / "r.html", sound, results))
    view.media_ready()
    view.page.keyboard.press(" ")
    view.until("document.getElementById('media').currentTime > 0.3")
    assert "voice heard \N{MIDDLE DOT} no face: no video track" in view.text("#used")
    assert view.page.locator(".moment img").count() == 0


def test_playing_is_followed_where_one_has_zoomed_in(opened: Callable[..., Opened], page_file: Path) -> None:
    view = opened(page_file)
    view.media_ready()
    view.page.focus("#timeline")
    view.page.keyboard.press("+")
    assert view.text("#range") == "0:00.0 \N{EN DASH} 0:04.0 of 0:08"
    view.page.evaluate("document.getElementById('media').currentTime = 3.8")
    view.page.keyboard.press(" ")
    view.until("/^0:0[34]/.test(document.getElementById('range').textContent)")
    assert 0 <= view.cursor <= 1
