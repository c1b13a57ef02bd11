"""The command `merfast profile`: a trace of prediction, and a table of where the time went."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from merfast import __version__
from merfast.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from merfast.engine import Engine
    from merfast.profiling import Recording

_WAITED = 4  # stages that a GPU waited for, named at most


def add_profile(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    engine: argparse.ArgumentParser,
    make_engine: Callable[[argparse.Namespace], Engine],
) -> None:
    """Register `merfast profile`; `engine` has the engine's options, of which `make_engine` makes one."""
    parser = commands.add_parser(
        "profile",
        parents=[engine],
        help="show where the time goes, as a trace and a table",
        description="Predict clips, and write when each stage ran in each thread as a trace that ui.perfetto.dev and "
        "chrome://tracing show. With a GPU, its kernels, memory copies and the stages that launched them are in it, "
        "as far as CUPTI reports them: what the video decoder (NVDEC) does is not, only the waiting for it and "
        "the copies of its pictures, nor are the kernels of one CUDA graph told apart by stage. Recording takes "
        "some time itself, most of all on a GPU.",
    )
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="file or URL")
    text = "where the trace goes, compressed if this ends in .gz (trace.json)"
    parser.add_argument("-o", "--output", type=Path, default=Path("trace.json"), metavar="FILE", help=text)
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="predict this many times (3)")
    parser.add_argument("--warm-up", type=int, default=1, metavar="N", help="predict so many times before (1)")
    parser.set_defaults(run=_profile, usage_error=parser.error, make_engine=make_engine)


def _profile(options: argparse.Namespace) -> int:
    for name, least in (("repeat", 1), ("warm_up", 0)):
        if getattr(options, name) < least:
            options.usage_error(f"--{name.replace('_', '-')}: got {getattr(options, name)}, expected at least {least}")
    from merfast.media.source import check_source

    for clip in options.clips:
        check_source(clip, clip)
    _check_output(options.output, options.clips)
    from merfast import profiling
    from merfast.cli_table import output_console
    from merfast.trace import span

    engine = options.make_engine(options)
    for _ in range(options.warm_up):
        engine.predict(options.clips)

    def run() -> None:
        for number in range(options.repeat):
            with span("predict", run=number):
                engine.predict(options.clips)

    recording = profiling.record(run, cuda="cuda" in engine.plan.choice("device"))
    about = {
        "merfast": __version__,
        "bundle": engine.bundle.config.name,
        "clips": ", ".join(options.clips),
        "runs": options.repeat,
        "machine": platform.platform(),
        **{f"plan: {step.step}": step.implementation for step in engine.plan.steps},
    }
    try:
        count = recording.write(options.output, about)
    except OSError as error:
        raise ConfigError(f"-o {options.output}: cannot be written ({error.strerror or error})") from error
    console = output_console()
    _show(console, recording, options.repeat, len(options.clips))
    console.print(
        f"\n{count} events are in {options.output}: open it at https://ui.perfetto.dev (it stays on your machine)"
    )
    return 0


def _check_output(path: Path, clips: Sequence[str]) -> None:
    """Complain before the work, rather than after it."""
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(f"-o {path}: cannot be written there, expected a file in an existing folder")
    if any("://" not in clip and path.exists() and path.samefile(clip) for clip in clips):
        raise ConfigError(f"-o {path}: is one of the clips")


def _show(console: Console, recording: Recording, runs: int, clips: int) -> None:
    """Print the table of stages, and what waited for what."""
    from rich.table import Table

    from merfast.profiling import WAIT_INPUT, WAIT_ROOM, gpu_uses, stages, waited_for_gpu

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    gpus = gpu_uses(recording)
    for heading in ("calls", "total ms", "own ms", "of the time", *(["GPU ms"] if gpus else [])):
        table.add_column(heading, justify="right")
    rows = stages(recording)
    for s in rows:
        cells = [str(s.calls), f"{s.total / 1e3:.1f}", f"{s.own / 1e3:.1f}", f"{s.share:.1%}"]
        table.add_row("  " * (len(s.path) - 1) + s.path[-1], *cells, *([f"{s.gpu / 1e3:.1f}"] if gpus else []))
    console.print(table)
    seconds = recording.duration / 1e6
    counted = [f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((runs, "run"), (clips, "clip"))]
    console.print(
        "\nms: threads added up; own: in none of the stages below; of the time: at least one thread was in it"
    )
    console.print(f"{' of '.join(counted)}: {seconds:.3f} s, {seconds / runs:.3f} s each")
    for name, who in ((WAIT_INPUT, "The model waited for media"), (WAIT_ROOM, "Readers waited for the model")):
        shares = [s.share for s in rows if s.path[-1] == name]
        console.print(f"{who} in {max(shares, default=0.0):.0%} of the time.")
    for use in gpus:
        text = (
            f"GPU {use.number}: busy in {use.busy:.0%} of the time (kernels {use.kernels:.0%}, copies {use.copies:.0%})"
        )
        waited = [f"{name} {share:.0%}" for name, share in use.waited.items() if share >= 0.005]
        console.print(
            f"{text}; while it had nothing to do, threads were in: {', '.join(waited[:_WAITED]) or 'nothing'}."
        )
    if gpus:
        console.print(f"Threads waited {waited_for_gpu(recording) / 1e3:.1f} ms for GPUs.")
