"""What TensorRT's bindings offer, and what merfast uses of it, without a GPU and without TensorRT's libraries.

The bindings need three libraries to be imported. Where those are missing, empty ones are compiled: all classes and
signatures are in the bindings themselves.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "merfast" / "runtime").glob("tensorrt*.py"))

VARIABLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "problem": "ParserError",
    "config": "IBuilderConfig",
    "optimisation": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
"""Name of a variable in merfast's source -> class of what it holds."""

MADE = {"get_input": "ITensor", "get_output": "ITensor"}
"""Name of a method whose result is used at once -> class of it."""

DUMP = """
import ctypes, importlib, inspect, json, sys
for file in sys.argv[2:]:
    ctypes.CDLL(file, mode=ctypes.RTLD_GLOBAL)
sys.modules["tensorrt"] = trt = importlib.import_module(sys.argv[1])

def of(cls):
    members = {n: getattr(cls, n) for n in dir(cls) if not n.startswith("_") or n == "__init__"}
    return {n: of(m) if inspect.isclass(m) else (m.__doc__ or "") if callable(m) else "" for n, m in members.items()}

classes = {n: of(c) for n, c in vars(trt).items() if inspect.isclass(c)}

from merfast.runtime.tensorrt_library import logger_of, monitor_of
logger = logger_of(trt)
logger.log(trt.ILogger.Severity.WARNING, "a warning")
logger.log(trt.ILogger.Severity.ERROR, "an\\nerror")
told = []
monitor = monitor_of(trt, lambda phase, done: told.append([phase, done]))
monitor.phase_start("phase", None, 2)
going = [monitor.step_complete("phase", 0)]
monitor.stopped = KeyboardInterrupt()
going.append(monitor.step_complete("phase", 1))
result = {"version": trt.__version__, "classes": classes, "said": logger.said(0), "told": told, "going": going}
print(json.dumps(result))
"""


@dataclass(frozen=True)
class Use:
    """An attribute that merfast takes of something of TensorRT's, or a call of it.

    Attributes:
        owner: its class, or chain of names below the module.
        name: of the attribute.
        arguments: how many are given by position, None if it is no call.
        keywords: names of the others.
    """

    owner: str
    name: str
    arguments: int | None = None
    keywords: tuple[str, ...] = ()


@dataclass
class Used:
    """All that merfast uses.

    Attributes:
        uses: of attributes.
        derived: base class -> method of merfast's own class -> number of its arguments, self included.
    """

    uses: set[Use] = field(default_factory=set)
    derived: dict[str, dict[str, int]] = field(default_factory=dict)


def used(sources: Iterable[Path] = SOURCES) -> Used:
    """What merfast's source uses of TensorRT, by the names of its variables."""
    found = Used()
    for source in sources:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    if isinstance(base, ast.Attribute) and _chain(base.value) == "trt":
                        functions = [n for n in node.body if isinstance(n, ast.FunctionDef)]
                        found.derived[base.attr] = {f.name: len(f.args.args) for f in functions}
            if isinstance(node, ast.Attribute) and (owner := _owner(node.value)) is not None:
                call = calls.get(id(node))
                if call is None:
                    found.uses.add(Use(owner, node.attr))
                else:
                    keywords = tuple(sorted(k.arg or "**" for k in call.keywords))
                    found.uses.add(Use(owner, node.attr, len(call.args), keywords))
    return found


def _chain(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _chain(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def _owner(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return MADE.get(node.func.attr)
    chain = _chain(node)
    if chain is None:
        return None
    if chain == "trt" or chain.startswith("trt."):
        return chain.removeprefix("trt").removeprefix(".")
    return VARIABLES.get(chain.rpartition(".")[2])


def problem_of(use: Use, classes: dict[str, Any]) -> str | None:
    """What is wrong with a use, None if the bindings have it."""
    owner: Any = classes
    for name in filter(None, use.owner.split(".")):
        owner = owner.get(name)
        if not isinstance(owner, dict):
            return f"{use.owner} is missing"
    there = owner.get(use.name)
    if there is None:
        return None if not use.owner and use.name == "__version__" else f"{use.owner}.{use.name} is missing"
    if use.arguments is None:
        return None
    doc = there.get("__init__", "") if isinstance(there, dict) else there
    # __init__ is called of the class, and given self.
    given = (use.arguments - (use.name == "__init__"), use.keywords)
    signatures = list(signatures_of("__init__" if isinstance(there, dict) else use.name, doc))
    if not any(_takes(parameters, *given) for parameters in signatures):
        return f"{use.owner}.{use.name} does not take {given}: {signatures}"
    return None


def signatures_of(name: str, doc: str) -> Iterator[list[tuple[str, bool]]]:
    """Parameters without self, and whether they are optional, of each overload in pybind11's docstring."""
    for inside in re.findall(rf"^\s*(?:\d+\. )?{name}\((.*)\) -> ", doc, re.M):
        parts, depth = [""], 0
        for letter in inside:
            depth += (letter in "[(<") - (letter in "])>")
            if letter == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += letter
        named = [(part.split(":")[0].strip(), " = " in part) for part in parts if part.strip()]
        if named and named[0][0] != "*args":
            yield [n for n in named if n[0] != "self"]


def _takes(parameters: list[tuple[str, bool]], count: int, keywords: tuple[str, ...]) -> bool:
    rest = dict(parameters[count:])
    missing = [n for n, optional in rest.items() if not optional and n not in keywords]
    return count <= len(parameters) and set(keywords) <= set(rest) and not missing


def bindings() -> Path | None:
    """The extension module of TensorRT's bindings, None if they are not installed."""
    for name in ("tensorrt_bindings", "tensorrt"):
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if found := next(iter(Path(folder).glob("tensorrt*.so")), None):
                return found
    return None


def dump(extension: Path, folder: Path) -> dict[str, Any]:
    """Import the bindings in a process of its own, with empty libraries if theirs are missing.

    Raises:
        RuntimeError: that is not possible.
    """
    first = _import(extension, [])
    if first.returncode == 0:
        return dict(json.loads(first.stdout))
    compiler, nm = shutil.which("cc") or shutil.which("gcc"), shutil.which("nm")
    if "cannot open shared object file" not in first.stderr or compiler is None or nm is None:
        raise RuntimeError(f"TensorRT's bindings cannot be imported: {first.stderr.strip().splitlines()[-1]}")
    symbols = subprocess.run([nm, "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    names = re.findall(r"^\s+U (?!_*Py|dl)(\w+)$", symbols.stdout, re.M)
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    wanted = sorted(set(re.findall(rb"libnv(?:infer|infer_plugin|onnxparser)\.so\.\d+", extension.read_bytes())))
    files = []
    for library in (w.decode() for w in wanted):
        command = [compiler, "-shared", "-fPIC", "-o", library, f"-Wl,-soname,{library}", source]
        subprocess.run(command, check=True, cwd=folder, capture_output=True)
        files.append(folder / library)
    second = _import(extension, files)
    if second.returncode != 0:
        raise RuntimeError(second.stderr)
    return dict(json.loads(second.stdout))


def _import(extension: Path, libraries: list[Path]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DUMP, extension.parent.name, *map(str, libraries)]
    paths = [str(ROOT), *sys.path]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    )
