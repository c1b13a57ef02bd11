"""A kernel that writes past the end of its output: compute-sanitizer must find it, or its silence means nothing.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 99 python tests/triton/fault.py
"""

import torch
import triton
import triton.language as tl


@triton.jit
def fault_kernel(out, count):
    tl.store(out + count + tl.arange(0, 16), 1.0)


fault_kernel[(1,)](torch.zeros(1000, device="cuda"), 1000)
torch.cuda.synchronize()
