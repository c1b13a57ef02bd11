"""The command line. What a command needs is imported when it runs, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from merfast import __version__
from merfast.cli_annotate import add_annotate
from merfast.cli_bench import add_bench
from merfast.cli_bundle import add_bundle, add_compile, add_info
from merfast.cli_live import add_live
from merfast.cli_output import EXPLAIN, TABLES, JsonWriter, OutputFile, add_output, check_outputs, output_of
from merfast.cli_plot import add_plot
from merfast.cli_profile import add_profile
from merfast.cli_report import add_report
from merfast.cli_timeline import add_timeline, until_failure
from merfast.errors import ConfigError, MediaError, MerfastError, UntrainedWarning
from merfast.tables import CsvWriter

if TYPE_CHECKING:
    from merfast.engine import Engine
    from merfast.types import Failure, Prediction

MEDIA_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm"),
    *(".wmv", ".aac", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"),
)
"""What is taken from a folder; a file that is named itself is always tried."""

_PORTION = 64
"""Files that go to the engine at a time; their results are written before the next."""

_ENGINE_OPTIONS = (
    *("device", "precision", "runtime", "faces", "detector", "detector_model", "decoder", "kernels"),
    "threads",
)

_FAILED, _USAGE, _INTERRUPTED, _BROKEN_PIPE = 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if all went well; 1 if a file failed; 2 if the command cannot be carried out as given; 130 after Ctrl-C; 141
        if the reader of standard output went away.
    """
    _repair_streams()
    options = _parser().parse_args(argv)
    log = logging.getLogger("merfast")
    notes = _Notes(logging.INFO)
    level, propagate = log.level, log.propagate
    try:
        log.addHandler(notes)
        log.setLevel(logging.INFO)
        log.propagate = False  # some libraries set up the root logger when they are imported
        with warnings.catch_warnings():
            warnings.simplefilter("always", UntrainedWarning)
            warnings.showwarning = _show_warning
            status = cast(int, options.run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        _say("interrupted")
        return _INTERRUPTED
    except (MerfastError, OSError) as error:
        _say(str(error))
        return _FAILED if isinstance(error, MediaError) else _USAGE
    finally:
        log.removeHandler(notes)
        log.setLevel(level)
        log.propagate = propagate
    return status


class _Notes(logging.Handler):
    """Shows what the library has to say while it works, such as that it compiles an encoder."""

    def emit(self, record: logging.LogRecord) -> None:
        _say(record.getMessage())


def _repair_streams() -> None:
    """Let every name be written, whatever the output's encoding, and go on where an output is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="merfast", description="Emotion and valence from raw talking-face video.")
    parser.add_argument("--version", action="version", version=f"merfast {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    engine = _engine_options()

    predict = commands.add_parser(
        "predict",
        parents=[engine],
        help="predict files, folders and URLs",
        description="Predict emotion and valence of media files. Exit status: 0 all predicted, 1 a file failed (the "
        "others are still written), 2 the command is wrong.",
    )
    predict.add_argument("items", nargs="+", metavar="ITEM", help="file, folder (searched for media files), or URL")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write a JSON array to standard output")
    form.add_argument("--csv", metavar="FILE", help="write a CSV file; '-' is standard output")
    add_output(form, TABLES)
    predict.add_argument("--window", type=float, metavar="SECONDS", help="predict windows of this length instead")
    predict.add_argument("--hop", type=float, metavar="SECONDS", help="from one window to the next (default: --window)")
    predict.add_argument("--explain", action="store_true", help=EXPLAIN)
    predict.add_argument("--quiet", action="store_true", help="no progress, and no table beside a file")
    predict.set_defaults(run=_predict, usage_error=predict.error)

    add_timeline(commands, engine, _engine)
    add_info(commands)
    add_bundle(commands)
    add_compile(commands)
    add_profile(commands, engine, _engine)
    add_live(commands, engine, _engine)
    add_plot(commands, engine, _engine)
    add_annotate(commands, engine, _engine)
    add_report(commands, engine, _engine)
    add_bench(commands, engine, _engine)

    plan = commands.add_parser("plan", parents=[engine], help="show which implementation runs each step, and why")
    plan.set_defaults(run=_plan)

    fetch = commands.add_parser("fetch", help="download an optional component")
    fetch.add_argument("what", choices=["yunet"], help="yunet: the better of the face detectors, 233 kB")
    fetch.add_argument("--from", dest="source", type=Path, metavar="FILE", help="take this copy, without the network")
    fetch.set_defaults(run=_fetch)

    demo = commands.add_parser("demo", parents=[engine], help="make a short clip and predict it")
    demo.add_argument("-o", "--output", type=Path, metavar="FILE", help="keep the clip here (MP4)")
    demo.set_defaults(run=_demo)
    return parser


def _engine_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("engine options")
    group.add_argument(
        "--bundle", metavar="DIR", help="model to use, or hub id that was pulled (default: the packaged one)"
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; or several, as cuda:0,cuda:1")
    group.add_argument("--precision", default="auto", help="of foundation models: auto, fp32, bf16 or int8")
    group.add_argument(
        "--runtime",
        default="auto",
        help="what runs foundation models: auto, torch, openvino, onnxruntime, or tensorrt (on a GPU)",
    )
    group.add_argument("--faces", default="main", help="main, or all for every face")
    group.add_argument("--detector", default="auto", help="auto, yunet, haar, or none for the voice alone")
    group.add_argument("--detector-model", metavar="FILE", help="YuNet's ONNX file, if not fetched")
    group.add_argument(
        "--decoder", default="auto", help="auto, pyav, torchcodec, decord, or on a GPU nvdec or pynvvideocodec"
    )
    group.add_argument(
        "--kernels",
        default="auto",
        help="auto, reference, triton (on a GPU), cpp, or one of cpp-generic, cpp-avx2, cpp-avx512",
    )
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: the number of cores)")
    return parser


def _engine(options: argparse.Namespace, **more: Any) -> Engine:
    from merfast.engine import Engine

    return Engine(options.bundle, **{name: getattr(options, name) for name in _ENGINE_OPTIONS}, **more)


def _predict(options: argparse.Namespace) -> int:
    if options.hop is not None and options.window is None:
        options.usage_error("--hop needs --window")
    if options.explain and not (options.json or options.csv or options.output):
        options.usage_error("--explain needs --json, --csv or -o")
    items = list(_expand(options.items))
    outputs = [output_of(name, TABLES) for name in options.output]
    if options.csv not in (None, "-"):
        outputs.append((Path(options.csv), ".csv"))
    check_outputs(outputs, items)
    engine = _engine(options)
    if options.window is None:
        results = _whole(engine, options, items)
    else:
        hop = options.window if options.hop is None else options.hop
        # All at once, so that a wrong window is refused before any file is touched.
        more = {"window": options.window, "hop": hop, "explain": options.explain}
        windows = [engine.timeline(item, **more) for item in items]
        results = (([r], []) for item, w in zip(items, windows, strict=True) for r in until_failure(item, w))
    failed = 0
    with ExitStack() as stack:
        # Opened before the work, so that a place that cannot be written to is known at once.
        files = [stack.enter_context(OutputFile(*output)) for output in outputs]
        writers: list[Callable[[Prediction | Failure], None]] | None = None
        for portion, rest in results:
            if writers is None:
                writers = [*(file.add for file in files), *_shown(options, portion, rest, stack)]
            for result in portion:
                failed += not result.ok
                for add in writers:
                    add(result)
    if failed and len(items) > 1:
        _say(f"{failed} of {len(items)} failed")
    return _FAILED if failed else 0


def _whole(
    engine: Engine, options: argparse.Namespace, items: Sequence[str]
) -> Iterator[tuple[Sequence[Prediction | Failure], Sequence[str]]]:
    """Results in portions, each with the names still to come: a run that is stopped has written what was done."""
    busy = _progress if sys.stderr.isatty() and not options.quiet else _no_progress
    for start in range(0, len(items), _PORTION):
        with busy(start, len(items)) as progress:
            end = start + _PORTION
            results = engine.predict(items[start:end], on_error="return", explain=options.explain, progress=progress)
        yield results, items[end:]


def _shown(
    options: argparse.Namespace, results: Sequence[Prediction | Failure], names: Sequence[str], stack: ExitStack
) -> list[Callable[[Prediction | Failure], None]]:
    """What prints each result, the first ones and names to come given; it ends with the stack."""
    if options.json:
        json_writer = JsonWriter(sys.stdout)
        stack.callback(json_writer.finish)
        return [json_writer.add]
    if options.csv == "-":
        return [CsvWriter(sys.stdout).add]
    if options.quiet and (options.csv or options.output):
        return []
    from merfast.cli_table import output_console, results_table, timeline_table

    console = output_console()
    table = results_table(console, results, names) if options.window is None else timeline_table(console)
    return [table.add]


def _expand(items: Sequence[str]) -> Iterator[str]:
    """Files and URLs as they are, folders as the media files below them, sorted.

    Raises:
        ConfigError: a folder cannot be read, or holds no media file.
    """
    for item in items:
        if not item or "://" in item or not Path(item).is_dir():
            yield item
            continue
        found: list[str] = []
        for folder, below, files in os.walk(item, onerror=_unreadable):
            below[:] = [name for name in below if not name.startswith(".")]
            names = (n for n in files if not n.startswith(".") and Path(n).suffix.lower() in MEDIA_SUFFIXES)
            found += [str(Path(folder, name)) for name in names]
        if not found:
            raise ConfigError(f"{item}: this folder holds no media files")
        yield from sorted(found)


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})")


@contextmanager
def _progress(done: int, count: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, gone when the work is done; for a single item it only moves."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("predicting", total=None if count == 1 else count, completed=done)
        yield lambda now: progress.update(task, completed=done + now)


@contextmanager
def _no_progress(done: int, count: int) -> Iterator[None]:
    yield None


def _plan(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles
    from merfast.config import EngineConfig
    from merfast.plan import make_plan

    given = {name: getattr(options, name) for name in _ENGINE_OPTIONS}
    if given["detector_model"] is not None:
        given["detector_model"] = Path(given["detector_model"])
    # Not from an engine, which would compile what is not compiled yet.
    print(make_plan(EngineConfig(**given), bundles.read_config(bundles.directory(options.bundle))))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from merfast.media import yunet

    print(yunet.fetch(options.source))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from merfast.cli_table import output_console, results_table
    from merfast.demo import MADE_OF, make_clip

    warnings.simplefilter("ignore", UntrainedWarning)  # said below
    with tempfile.TemporaryDirectory(prefix="merfast-") as folder:
        clip = make_clip(options.output or Path(folder, "demo.mp4"))
        where = f"written to {clip}" if options.output else "made for this run (-o FILE keeps it)"
        print(f"A clip of {MADE_OF}; {where}.", flush=True)
        engine = _engine(options)
        started = time.perf_counter()
        results = engine.predict([clip])
        took = time.perf_counter() - started
    console = output_console()
    table = results_table(console, results)
    print()
    for result in results:
        table.add(result)
    print(f"\nPredicted in {took:.2f} s, the first run included, with bundle {engine.bundle.config.name!r}.")
    if not engine.bundle.config.trained:
        print("This bundle is UNTRAINED: the numbers above show that merfast runs, and mean nothing else.")
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    print(f"merfast: {' '.join(text.splitlines())}", file=sys.stderr)
