"""All that is used of TensorRT against its installed bindings, which need no GPU for that."""

from __future__ import annotations

import inspect
from typing import Any

import fake_tensorrt
import pytest
import tensorrt_api
from tensorrt_api import Use


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the installed bindings offer."""
    extension = tensorrt_api.bindings()
    if extension is None:
        pytest.skip("TensorRT's bindings are not installed (tensorrt_cu13_bindings): its API is NOT checked")
    try:
        return tensorrt_api.dump(extension, tmp_path_factory.mktemp("libraries"))
    except RuntimeError as error:
        pytest.skip(f"TensorRT's API is NOT checked: {error}")


def test_uses_are_found_in_the_source() -> None:
    used = tensorrt_api.used()
    for use in (
        Use("", "Builder"),
        Use("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        Use("ILogger.Severity", "ERROR"),
        Use("OnnxParser", "parse_from_file", 1),
        Use("IOptimizationProfile", "set_shape", 4),
        Use("IBuilderConfig", "progress_monitor"),
        Use("Runtime", "deserialize_cuda_engine", 1),
        Use("IExecutionContext", "execute_async_v3", 1),
        Use("ITensor", "name"),
    ):
        assert use in used.uses, use
    assert set(used.derived) == {"ILogger", "IProgressMonitor"}
    owners = {use.owner for use in used.uses}
    assert set(tensorrt_api.VARIABLES.values()) <= owners, "a variable was renamed: name it in tensorrt_api.VARIABLES"


def test_all_that_is_used_is_in_the_bindings(api: dict[str, Any]) -> None:
    used = tensorrt_api.used()
    problems = [tensorrt_api.problem_of(use, api["classes"]) for use in sorted(used.uses, key=str)]
    assert [p for p in problems if p] == []
    for base, methods in used.derived.items():
        for name, doc in api["classes"][base].items():
            signatures = list(tensorrt_api.signatures_of(name, doc)) if isinstance(doc, str) else []
            if name != "__init__" and signatures:
                assert methods.get(name) == len(signatures[0]) + 1, f"{base}.{name}{signatures}"


def test_the_check_of_uses_finds_what_is_wrong(api: dict[str, Any]) -> None:
    for use in (
        Use("", "Bulder"),
        Use("BuilderFlag", "FP17"),
        Use("Builder", "build_engine"),
        Use("IExecutionContext", "execute_async_v3", 2),
        Use("IExecutionContext", "execute_async_v3", 0),
        Use("IExecutionContext", "execute_async_v3", 0, ("stream",)),
        Use("IOptimizationProfile", "set_shape", 3),
        Use("ILogger.Severity", "FATAL"),
        Use("", "Runtime", 0),
    ):
        assert tensorrt_api.problem_of(use, api["classes"]) is not None, use
    right = Use("IExecutionContext", "execute_async_v3", 0, ("stream_handle",))
    assert tensorrt_api.problem_of(right, api["classes"]) is None


def test_the_stand_in_has_only_names_of_the_bindings(api: dict[str, Any]) -> None:
    ours = {"OnnxParser": {"network"}, "ICudaEngine": {"fails"}}
    for name, cls in vars(fake_tensorrt).items():
        if not inspect.isclass(cls) or cls.__module__ != "fake_tensorrt":
            continue
        there = api["classes"][name]
        for member, value in vars(cls).items():
            if inspect.isfunction(value) and not member.startswith("_"):
                parameters = list(inspect.signature(value).parameters)[1:]
                overloads = list(tensorrt_api.signatures_of(member, there[member]))
                assert any([n for n, _ in o][: len(parameters)] == parameters for o in overloads), (name, member)
            elif isinstance(value, property) or hasattr(cls, "__members__"):
                assert member.startswith("_") or member in there or member in ours.get(name, ()), (name, member)


def test_logger_and_monitor_derive_from_the_real_ones(api: dict[str, Any]) -> None:
    assert api["said"] == "an error"
    assert api["told"] == [["phase", 0.0], ["phase", 0.5]]
    assert api["going"] == [True, False]
