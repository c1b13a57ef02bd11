"""The commands about bundles: `merfast info` and `merfast bundle create | verify | push | pull`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merfast.errors import ConfigError

if TYPE_CHECKING:
    from merfast.bundle import Bundle


def add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `merfast info`."""
    info = commands.add_parser("info", help="describe a bundle")
    info.add_argument("bundle", nargs="?", metavar="DIR", help="bundle directory (default: the packaged one)")
    info.set_defaults(run=_info)


def add_compile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `merfast compile`."""
    parser = commands.add_parser(
        "compile",
        help="compile a bundle's foundation models now, rather than when they are first used",
        description="Compile the foundation models of a bundle for what runs them, and keep that in the bundle's "
        "folder `compiled`, which is safe to delete.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle directory, or hub id that was pulled")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, fp32, bf16, or on the CPU int8")
    parser.add_argument("--runtime", default="auto", help="auto, openvino, onnxruntime, or tensorrt (on a GPU)")
    parser.set_defaults(run=_compile)


def add_bundle(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `merfast bundle` and its commands."""
    bundle = commands.add_parser("bundle", help="create, verify, push and pull bundles")
    actions = bundle.add_subparsers(title="commands", required=True, metavar="COMMAND")
    far = argparse.ArgumentParser(add_help=False)
    far.add_argument("--endpoint", metavar="URL", help="address of the hub, if another one")

    create = actions.add_parser(
        "create",
        parents=[far],
        help="make an untrained bundle of pretrained encoders",
        description="Make a bundle of checkpoints in transformers' format: HuBERT, wav2vec 2.0, WavLM; ViT, CLIP "
        "vision, DINOv2, ResNet. Its fusion is untrained: train it before you use its predictions.",
    )
    source = "[NAME=]ID"
    text = "folder, or hub id as owner/name or owner/name@revision; NAME is its stream's; may be given again"
    create.add_argument("--audio", action="append", default=[], metavar=source, help=f"encoder of the voice: {text}")
    create.add_argument("--video", action="append", default=[], metavar=source, help="encoder of the face, likewise")
    create.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="[NAME=]LAYER",
        help="whose vectors to take: last (default), mean, a number, ...; of all streams, or of NAME",
    )
    create.add_argument("--frame-rate", type=float, default=5.0, metavar="HZ", help="face crops a second (5)")
    create.add_argument("--max-window", type=float, default=16.0, metavar="SECONDS", help="longest stretch (16)")
    create.add_argument("--name", help="of the bundle (default: that of the directory)")
    create.add_argument("--seed", type=int, default=0, help="of the untrained weights (0)")
    create.add_argument("--download", action="store_true", help="get what the hub's local cache lacks")
    create.add_argument("out", type=Path, metavar="OUT", help="new directory")
    create.set_defaults(run=_create)

    verify = actions.add_parser("verify", help="load all of a bundle, and say what is there")
    verify.add_argument("bundle", metavar="DIR", help="bundle directory, or hub id that was pulled")
    verify.set_defaults(run=_verify)

    push = actions.add_parser("push", parents=[far], help="put a bundle on the Hugging Face hub")
    push.add_argument("bundle", type=Path, metavar="DIR", help="bundle directory")
    push.add_argument("name", metavar="OWNER/NAME", help="repository, made if it is not there")
    push.add_argument("--private", action="store_true", help="only its owner may see it")
    push.add_argument("--revision", metavar="BRANCH", help="made if it is not there (default: main)")
    push.set_defaults(run=_push)

    pull = actions.add_parser(
        "pull",
        parents=[far],
        help="get a bundle from the Hugging Face hub",
        description="Get a bundle from the hub. Without OUT it stays in the hub's local cache, where its name "
        "finds it, as in: merfast predict talk.mp4 --bundle OWNER/NAME",
    )
    pull.add_argument("name", metavar="OWNER/NAME", help="repository")
    pull.add_argument("out", nargs="?", type=Path, metavar="OUT", help="new directory to copy it to")
    pull.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    pull.set_defaults(run=_pull)


def _info(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles

    bundle = bundles.load(options.bundle)
    config, pre = bundle.config, bundle.config.preprocessing
    mix = zip(config.fusion.structures, config.fusion.mix, strict=True)
    _table(
        [
            *_heading(bundle),
            ("streams", [f"{s.name}: {s.modality}, {s.encoder}, {s.dim} wide" for s in config.streams]),
            ("structures", [f"{name}, {weight:.0%} of the average" for name, weight in mix]),
            ("size", [_size(bundle)]),
            (
                "preprocessing",
                [
                    f"voice at {pre.sample_rate} Hz, {pre.frame_rate:g} faces a second of {pre.crop_size} pixels",
                    f"windows up to {pre.max_window:g} s",
                ],
            ),
            ("metrics", [f"{name}: {value}" for name, value in config.metrics.items()] or ["none recorded"]),
            ("licence", [config.licence or "not stated"]),
            ("provenance", list(_entries(config.provenance)) or ["not stated"]),
        ]
    )
    return 0


def _compile(options: argparse.Namespace) -> int:
    from rich.console import Console

    from merfast import bundle as bundles
    from merfast import compiled
    from merfast.config import EngineConfig
    from merfast.plan import make_plan

    root = bundles.directory(options.bundle)
    config = bundles.read_config(root)
    asked = EngineConfig(device=options.device, precision=options.precision, runtime=options.runtime, detector="none")
    if len(asked.devices) > 1:
        raise ConfigError(f"--device: got {asked.device!r}, expected one")
    targets = compiled.targets_of(config, make_plan(asked, config), threads=1)
    if not targets:
        raise ConfigError(f"{root}: got a bundle without foundation models, expected one: there is nothing to compile")
    with Console(stderr=True).status("compiling") as status:
        for name, target in targets.items():
            if target.runtime == "torch":
                print(f"{name}: runs in torch, which needs no compiling")
                continue

            def tell(phase: str, done: float, name: str = name) -> None:
                status.update(f"compiling {name}: {phase}, {done:.0%}")

            print(f"{name}: {compiled.compile_encoders(root, config, {name: target}, tell)[name]}")
    return 0


def _create(options: argparse.Namespace) -> int:
    from merfast.create import create

    bundle = create(
        options.out,
        audio=options.audio,
        video=options.video,
        layer=_layers(options.layer),
        frame_rate=options.frame_rate,
        max_window=options.max_window,
        name=options.name,
        seed=options.seed,
        download=options.download,
        endpoint=options.endpoint,
    )
    _contents(bundle)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles

    _contents(bundles.load(options.bundle))
    return 0


def _push(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles

    print(
        bundles.push(
            options.bundle,
            options.name,
            private=options.private,
            revision=options.revision,
            endpoint=options.endpoint,
        )
    )
    return 0


def _pull(options: argparse.Namespace) -> int:
    from merfast import bundle as bundles

    print(bundles.pull(options.name, options.out, revision=options.revision, endpoint=options.endpoint))
    return 0


def _layers(given: Sequence[str]) -> str | int | dict[str, str | int] | None:
    """One layer for all streams, or one by name; None if none is given.

    Raises:
        ConfigError: both, or several for all.
    """
    pairs = [text.partition("=") for text in given]
    if not pairs:
        return None
    values = [int(v) if re.fullmatch(r"-?[0-9]+", v) else v for v in (after or before for before, _, after in pairs)]
    if all(equals for _, equals, _ in pairs):
        return dict(zip((before for before, _, _ in pairs), values, strict=True))
    if len(pairs) > 1:
        raise ConfigError(f"--layer: got {', '.join(given)}, expected one for all streams, or NAME=LAYER each time")
    return values[0]


def _contents(bundle: Bundle) -> None:
    """What was loaded, a line for each stream."""
    config = bundle.config
    foundations = bundle.model.foundations
    streams = []
    for s in config.streams:
        count = sum(p.numel() for p in bundle.model.encoders[s.name].parameters())
        kind = foundations[s.name].family if s.name in foundations else s.encoder
        streams.append(f"{s.name}: {s.modality}, {kind}, {s.dim} wide, {count:,} parameters")
    mixed = ", ".join(config.fusion.structures)
    rest = sum(p.numel() for n, p in bundle.model.named_parameters() if not n.startswith("encoders."))
    _table(
        [
            *_heading(bundle),
            ("streams", streams),
            ("fusion", [f"{mixed}, {rest:,} parameters"]),
            ("size", [_size(bundle)]),
            ("licence", [config.licence or "not stated"]),
        ]
    )


def _heading(bundle: Bundle) -> list[tuple[str, list[str]]]:
    trained = "yes" if bundle.config.trained else "no: its predictions mean nothing"
    return [("bundle", [bundle.config.name]), ("trained", [trained]), ("directory", [str(bundle.path)])]


def _size(bundle: Bundle) -> str:
    parameters = sum(p.numel() for p in bundle.model.parameters())
    stored = sum(f.stat().st_size for f in bundle.path.rglob("*") if f.is_file())
    return f"{parameters:,} parameters, {stored / 1e6:.1f} MB on disk"


def _entries(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """`name: value`, and `name.inner: value` of what is nested."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{before}{name}.")
        else:
            yield f"{before}{name}: {value}"


def _table(rows: Sequence[tuple[str, list[str]]]) -> None:
    for label, values in rows:
        for i, value in enumerate(values):
            print(f"{'' if i else label:<15}{value}")
