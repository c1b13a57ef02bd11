#!/bin/sh
# Runs the C++ kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer. Builds out of tree, in a
# temporary folder; needs g++ and a Python with torch, pybind11, pytest and hypothesis, named by $PYTHON.
set -eu
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R "$root/csrc" "$root/merfast" "$root/tests" "$root/setup.py" "$root/pyproject.toml" "$work"
find "$work/merfast" -name '_C*.so' -delete
cd "$work"
flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
CFLAGS="$flags" LDFLAGS="$flags" "$python" -W ignore setup.py -q build_ext --inplace
# The interpreter itself is not instrumented: the runtime has to come first, libstdc++ with it for exceptions. Leaks
# are not looked for, because the interpreter and torch keep what they allocate. verify_asan_link_order would refuse
# the preload on some distributions.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
export LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 UBSAN_OPTIONS=print_stacktrace=1
# Masked vector loads and stores are not instrumented: the forbidden-page test covers those. capture=sys leaves file
# descriptor 2 alone, where the report of an aborted run goes.
"$python" -m pytest -q -p no:cacheprovider --capture=sys tests/test_afg_cpu.py tests/test_afg_cpu_use.py tests/test_afg_attention.py \
    tests/test_crop_norm_cpu.py tests/test_decode_cpu.py tests/test_group_norm_gelu_cpu.py "$@"
