"""Pictures of all that merfast shows: reports (light, dark, several faces, an hour, print, a phone), a plot, a frame of
an annotated video, the terminal view; and how long the reports' pages take.

    python -m benchmarks.shots --out folder
    python -m benchmarks.shots --out folder --data data --detector-model yunet.onnx

Pages and pictures are written to the folder. The hour's results are synthetic (3600 windows, four faces, attention) and
it has no video. For each page: size of the file, time until it is drawn, and the longest task of the main thread, while
loading and while it is played, scrolled, zoomed and sought in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import av
import cv2

import merfast
from benchmarks.report_inputs import DRAWN, WATCH, browser, clip_of, find_browser, synthetic
from merfast.annotate import annotate
from merfast.cli_view import terminal_picture
from merfast.plots import plot_timeline
from merfast.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTH, HEIGHT = 1280, 900
HOUR = 3600.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.shots", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="real clips (default: MERFAST_DATA, or the demo's)")
    parser.add_argument("--detector-model", metavar="FILE", help="YuNet's ONNX file")
    options = parser.parse_args(argv)
    executable = find_browser()
    if executable is None:
        parser.exit(2, "no chromium on this machine\n")
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.data or (Path(os.environ["MERFAST_DATA"]) if "MERFAST_DATA" in os.environ else None)
    pages = make_pages(options.out, data, options.detector_model)
    print(f"{'page':<10} {'MB':>6} {'drawn ms':>9} {'longest task, loading':>22} {'in use':>7}  requests  errors")
    with browser(executable) as running:
        shoot_terminal(running, options.out)
        bad = [name for name, file in pages.items() if not measured(running, name, file)]
        for name, file, scheme in (
            ("light", pages["one"], "light"),
            ("dark", pages["one"], "dark"),
            ("several", pages["several"], "light"),
            ("several-dark", pages["several"], "dark"),
            ("hour", pages["hour"], "light"),
            ("hour-dark", pages["hour"], "dark"),
        ):
            shoot(running, file, options.out / f"{name}.png", scheme)
        shoot(running, pages["several"], options.out / "phone.png", "light", width=390)
        shoot(running, pages["hour"], options.out / "hour-zoomed.png", "light", zoomed=True)
        shoot(running, pages["several"], options.out / "print.png", "light", printed=True)
        shoot(running, pages["one"], options.out / "no-script.png", "light", script=False)
    return 1 if bad else 0


def make_pages(out: Path, data: Path | None, detector_model: str | None) -> dict[str, Path]:
    """The pages by name, written to a folder."""
    engine = merfast.Engine(detector_model=detector_model)
    config = engine.bundle.config
    one = clip_of(data, "long_20s.mp4", out / "one.mp4", 20)
    several = clip_of(data, "several_people.mp4", out / "several.mp4", 10)
    pages = {name: out / f"{name}.html" for name in ("one", "several", "hour")}
    timeline = list(engine.timeline(one, window=2.0, hop=0.5, explain=True))
    write_report(pages["one"], one, timeline, bundle=config)
    plot_timeline(timeline).savefig(out / "plot.png", dpi=100)
    (out / "terminal.svg").write_text(terminal_picture(timeline, one.name, 100, 30), encoding="utf-8")
    annotate(engine, several, out / "annotated.mp4", faces="all")
    save_frame(out / "annotated.mp4", 2.0, out / "annotated.png")
    results = engine.timeline(several, window=2.0, hop=0.5, faces="all", explain=True)
    write_report(pages["several"], several, results, bundle=config)
    hour = [replace(p, source="hour.mp4") for p in synthetic(HOUR + 3, faces=4, explain=True)]
    began = time.perf_counter()
    write_report(pages["hour"], "hour.mp4", hour, bundle=config, media="none")
    print(f"the hour's page was written in {time.perf_counter() - began:.1f} s")
    return pages


def save_frame(video: Path, time: float, out: Path) -> None:
    """The first picture from a time on, in seconds."""
    with av.open(str(video)) as container:
        frame = next(f for f in container.decode(video=0) if f.time >= time)
        cv2.imwrite(str(out), frame.to_ndarray(format="bgr24"))


def shoot_terminal(running: Browser, out: Path) -> None:
    page = running.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.goto((out / "terminal.svg").resolve().as_uri())
    page.screenshot(path=str(out / "terminal.png"))
    page.close()


def opened(running: Browser, file: Path, scheme: str, *, width: int = WIDTH, script: bool = True) -> Page:
    page = running.new_page(
        viewport={"width": width, "height": HEIGHT},
        color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=script,
        device_scale_factor=1,
    )
    page.add_init_script(WATCH)
    return page


def measured(running: Browser, name: str, file: Path) -> bool:
    """Print the figures of a page; whether it asked for nothing else and had no errors."""
    page = opened(running, file, "light")
    errors: list[str] = []
    others: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("data:", "blob:", "file:")) else others.append(r.url))
    page.goto(file.resolve().as_uri())
    drawn = page.evaluate(DRAWN)
    page.wait_for_timeout(700)
    loading = max(page.evaluate("window.longTasks"), default=0.0)
    page.evaluate("window.longTasks = []")
    use(page)
    using = max(page.evaluate("window.longTasks"), default=0.0)
    size = file.stat().st_size / 1e6
    print(f"{name:<10} {size:6.2f} {drawn:9.0f} {loading:22.0f} {using:7.0f}  {len(others):8}  {len(errors)}")
    for text in (*others, *errors):
        print(f"    {text}", file=sys.stderr)
    page.close()
    return not others and not errors


def use(page: Page) -> None:
    """What a reader does: play, seek, zoom, move along, choose a face, scroll."""
    page.keyboard.press(" ")
    box = page.locator("#timeline .lane canvas").first.bounding_box()
    assert box is not None
    for k in range(30):
        page.mouse.click(box["x"] + box["width"] * (k * 7 % 30 + 0.5) / 30, box["y"] + 40)
        page.keyboard.press("ArrowRight")
    for _ in range(6):
        page.locator("#in").evaluate("button => button.click()")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
    page.mouse.down()
    for k in range(40):
        page.mouse.move(box["x"] + box["width"] / 2 - 8 * k, box["y"] + 20)
    page.mouse.up()
    page.locator("#all").evaluate("button => button.click()")
    options = page.locator("#face option").count()
    for k in range(options if options > 1 else 0):
        page.select_option("#face", str(k))
    for _ in range(20):
        page.mouse.wheel(0, 150)
    page.evaluate(DRAWN)
    page.mouse.wheel(0, -9999)


def shoot(
    running: Browser,
    file: Path,
    out: Path,
    scheme: str,
    *,
    width: int = WIDTH,
    zoomed: bool = False,
    printed: bool = False,
    script: bool = True,
) -> None:
    page = opened(running, file, scheme, width=width, script=script)
    page.goto(file.resolve().as_uri())
    page.wait_for_timeout(800)
    if script:
        # At the third moment, as a reader would be who has clicked on it.
        page.locator(".moment").nth(2 if page.locator(".moment").count() > 2 else 0).click()
        for _ in range(6 if zoomed else 0):
            page.locator("#in").evaluate("button => button.click()")
        page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(600)
    if printed:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.evaluate(DRAWN)
    page.screenshot(path=str(out), full_page=True)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
