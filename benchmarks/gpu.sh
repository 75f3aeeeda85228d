#!/usr/bin/env bash
# Benchmarks (a), (b), (d), the tests marked cuda, and the losses of every method against the CPU's, on a GPU, in at most
# 8 minutes. Every stage has its own limit and fails alone. Afterwards DIR holds gpu.json and one log a stage.
#
#     benchmarks/gpu.sh [--stage STAGE] [--out DIR] [--device cuda] [--shapes "1B 7B"] [--scale 1]
#
# Stages: recorded (tests of what is compiled and recorded), step, quant, gen; speed (these four, 330 s); tests (all that
# are marked cuda); parity; all.
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
workers=$(python3 -c 'import xdist; print("-n 6 --dist worksteal")' 2>/dev/null)
cuda_tests() {  # NAME SECONDS PATHS...
    REPORT="$out/$1.json" OMP_NUM_THREADS=2 run "$1" "$(limit "$2")" \
        python3 -m pytest -p benchmarks.pytest_json -p no:cacheprovider -m cuda "${@:3}" $workers --tb=short -rf
}
if asked speed recorded; then cuda_tests recorded 60 tests/cuda/test_recorded.py; fi
if asked speed step; then bench training_step 165 --shapes $shapes; fi
if asked speed quant; then bench quantization 25; fi
if asked speed gen; then bench generation 60 --shapes $shapes; fi
if asked tests; then cuda_tests tests 90 tests/cuda --ignore tests/cuda/test_recorded.py; fi
if asked parity; then bench parity 55; fi
