#!/usr/bin/env bash
# Builds the CPU library under AddressSanitizer and UndefinedBehaviorSanitizer beside the real one, and runs the tests of
# bad input, odd shapes and odd layouts on it: a read or write outside an operand, or what C++ does not define, ends the
# run. Then the losses' on CUDA's kernels, as C++. With FUSED_LOSSES_CPU=all, on the libraries of all instruction sets.
set -euo pipefail
python=$1
cd "$(dirname "$0")/.."
copy=build/sanitize
rm -rf "$copy"
mkdir -p "$copy"
cp -r csrc fused_losses tests setup.py pyproject.toml README.md LICENSE "$copy"
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
cd "$copy"
rm -f fused_losses/*.so
FUSED_LOSSES_SANITIZE=address,undefined FUSED_LOSSES_CUDA=0 "$python" setup.py --quiet build_ext --inplace

# The interpreter is not built with the sanitizer, which must come first. What torch keeps for ever is no leak of
# ours, and an exception must pass through its libraries as usual.
sanitized_pytest() {
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH="$PWD" "$python" -m pytest --tb=short "$@"
}
for library in fused_losses/_cpu_*.so; do
    isa=${library#*_cpu_}
    ATEN_CPU_CAPABILITY=${isa%.so} \
        sanitized_pytest tests/losses/test_bad_input*.py tests/losses/test_extensions.py tests/losses/test_losses.py \
        -k "not threads and not float64 and not float16"
done

library=$("$python" tests/backends/cuda_on_cpu/build.py build/cuda_on_cpu address,undefined)
FUSED_LOSSES_CUDA_ON_CPU=$library \
    sanitized_pytest tests/losses/test_losses.py tests/losses/test_extensions.py tests/contract/test_backward_contract*.py
