"""What a process and its GPU are doing: utilisation, memory, threads, open files."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

PERIOD = 0.1
"""Seconds from one look at the utilisation to the next."""

SETTLE = 1.0
"""Seconds after which the driver's utilisation is of the work alone: it averages over up to a second."""


class Gpu:
    """The driver's view (NVML) of a CUDA device.

    Attributes:
        missing: why there is none; empty if there is.
    """

    def __init__(self, device: str) -> None:
        self.missing = ""
        self._handle: Any = None
        if not device.startswith("cuda"):
            self.missing = "the device is the CPU"
            return
        try:
            import pynvml
        except ImportError:
            self.missing = "nvidia-ml-py is not installed"
            return
        self._nvml = pynvml
        index = torch.device(device).index or 0
        uuid = str(getattr(torch.cuda.get_device_properties(index), "uuid", ""))
        try:
            pynvml.nvmlInit()
            try:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
            except pynvml.NVMLError:  # the numbers agree where no device is hidden
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            self.missing = f"NVML: {error}"

    def utilisation(self) -> dict[str, float]:
        """Percent of the time: "gpu", in which a kernel ran, and "decoder", of the decode engines' average."""
        if self.missing:
            return {}
        calls: dict[str, Callable[[], float]] = {
            "gpu": lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu,
            "decoder": lambda: self._nvml.nvmlDeviceGetDecoderUtilization(self._handle)[0],
        }
        found = {}
        for name, call in calls.items():
            try:
                found[name] = float(call())
            except self._nvml.NVMLError:  # not every device counts everything
                continue
        return found

    def memory(self) -> dict[str, float]:
        """MiB that are taken on the device, by whomever."""
        if self.missing:
            return {}
        return {"gpu used": self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used / 2**20}


class Sampled:
    """Runs with looks at the utilisation; `means` has their averages, in percent."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._seen = gpu, dict[str, list[float]]()

    def run(self, call: Callable[[], Any]) -> tuple[Any, float]:
        """What `call` gives, and the seconds that it took."""
        over = threading.Event()
        began = time.perf_counter()

        def look() -> None:
            looks = []
            while not over.wait(PERIOD):
                looks.append((time.perf_counter() - began, self._gpu.utilisation()))
            # A short run has no settled part.
            settled = [seen for when, seen in looks if when > SETTLE] or [seen for _, seen in looks[-1:]]
            for seen in settled:
                for name, value in seen.items():
                    self._seen.setdefault(name, []).append(value)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            out = call()
            seconds = time.perf_counter() - began
        finally:
            over.set()
            watcher.join()
        return out, seconds

    @property
    def means(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._seen.items()}


def footprint(device: str, gpu: Gpu) -> dict[str, float]:
    """What this process holds: memory in MiB, threads and open files by number."""
    status = Path("/proc/self/status").read_text()
    found = {
        "resident": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024,  # type: ignore[index]
        "threads": float(re.search(r"Threads:\s+(\d+)", status)[1]),  # type: ignore[index]
        "files": float(len(os.listdir("/proc/self/fd"))),
    }
    if device.startswith("cuda"):
        found["gpu allocated"] = torch.cuda.memory_allocated(device) / 2**20
        found["gpu reserved"] = torch.cuda.memory_reserved(device) / 2**20
    return found | gpu.memory()
