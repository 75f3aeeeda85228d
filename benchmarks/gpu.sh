#!/usr/bin/env bash
# The tests marked cuda, the losses of every method against the CPU's, and benchmarks (a), (b), (d), on a GPU, in at most
# 8 minutes. Every stage has its own limit and fails alone. Afterwards DIR holds gpu.json and one log a stage.
#
#     benchmarks/gpu.sh [--stage all|tests|parity|bench|step|quant|gen] [--out DIR] [--device cuda] [--shapes "1B 7B"]
#
# Packages that the machine lacks are found in .gpu/ (ignored by git). bitsandbytes with its library for CUDA 13 only:
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_24_x86_64 bitsandbytes
#     unzip -q bitsandbytes-*.whl -d .gpu -x '*rocm*' '*cuda11*' '*cuda12*' '*cuda132*' '*xpu*'
set -u
cd "$(dirname "$0")/.." || exit 1
stage=all out=${OUT:-gpu-report} device=cuda shapes="1B 7B 135M" scale=1
while [ $# -gt 0 ]; do
    case $1 in
        --stage) stage=$2 ;;
        --out) out=$2 ;;
        --device) device=$2 ;;
        --shapes) shapes=$2 ;;
        --scale) scale=$2 ;;  # multiplies every limit: 0.5 halves them
        *) echo "unknown argument: $1" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
if [ -d .gpu ]; then export PYTHONPATH="$PWD/.gpu${PYTHONPATH:+:$PYTHONPATH}"; fi
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive TEST_DEVICE=$device

limit() { awk "BEGIN { printf \"%d\", $1 * $scale }"; }
run() {  # NAME SECONDS COMMAND...: stopped 10 s after the time at which it should end by itself
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    timeout --kill-after=5 $((seconds + 10)) "$@" >"$out/$name.log" 2>&1
    echo "$name: exit code $?, $((SECONDS - began)) s of $seconds"
}
asked() { [[ " all $* " == *" $stage "* ]]; }
bench() {
    local seconds
    seconds=$(limit "$2")
    run "$1" "$seconds" python3 -m "benchmarks.gpu_$1" --device "$device" --out "$out/$1.json" --seconds "$seconds" "${@:3}"
}
trap 'python3 -m benchmarks.summary "$out" 2>&1 | tee "$out/summary.txt"' EXIT

{ nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; } 2>/dev/null
python3 -c 'import torch; print("torch", torch.__version__, torch.cuda.is_available() and torch.cuda.get_device_name())'
if asked tests; then
    workers=$(python3 -c 'import xdist; print("-n 6 --dist worksteal")' 2>/dev/null)
    REPORT="$out/tests.json" OMP_NUM_THREADS=2 run tests "$(limit 130)" \
        python3 -m pytest -p benchmarks.pytest_json -p no:cacheprovider -m cuda tests/cuda $workers --tb=short -rf
fi
if asked parity; then bench parity 70; fi
if asked bench quant; then bench quantization 35; fi
if asked bench step; then bench training_step 115 --shapes $shapes; fi
if asked bench gen; then bench generation 65 --shapes $shapes; fi
