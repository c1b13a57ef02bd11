"""These tests run in a process of their own: interpreted on the CPU (TRITON_INTERPRET=1), or on a GPU for real.

`tests/test_triton.py` starts them; alone: `TRITON_INTERPRET=1 pytest tests/triton/check_afg.py`.
"""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config: pytest.Config) -> None:
    """The interpreter computes in numpy, which warns of what the kernels mean: exp(-inf), NaN in, NaN out."""
    config.addinivalue_line("filterwarnings", "ignore::RuntimeWarning")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the kernels run."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("needs TRITON_INTERPRET=1 or an NVIDIA GPU")
    return torch.device("cpu" if INTERPRETED else "cuda")
