#!/usr/bin/env bash
# The papers' cells on a GPU: the plans of experiments/plans, seed 0 first, within a time limit (8 minutes at most).
# Afterwards DIR holds cells.json, written anew after each cell, and one log a worker.
#
#     experiments/gpu.sh [--stage papers] [--out DIR] [--model DIR] [--data DIR] [--seconds 280] [--jobs 12]
#                        [--device cuda] [--scale 1] [--from cells.json] [--mps]
#
# Stages: plr, ptq, scale, plr_recipe; papers (these four in one pool); methods (on the embedded base, and on the model
# if there is one); all (papers and methods); or names of plans.
#
# --model     a model directory (default: $SMOLLM2). The embedded base if there is none.
# --data      a directory with sql_create_context and bitext, train.jsonl and test.jsonl each
# --from      cells of an earlier call, which are not done again
# --mps       run NVIDIA's multi-process service meanwhile, so that kernels of several workers run at the same time;
#             it changes no setting of the GPU, and ends with the script
#
# Where there is no git, EXPERIMENTS_COMMIT names the commit that cells.json records.
#
# Packages that the machine lacks are found in .gpu/ (ignored by git). ROUGE needs
#     pip install --no-deps --target .gpu rouge-score nltk defusedxml
set -u
cd "$(dirname "$0")/.." || exit 1
stage=papers out=${OUT:-gpu-cells} model=${SMOLLM2:-} data=data seconds=280 jobs=12 device=cuda scale=1
earlier="" mps=""
while [ $# -gt 0 ]; do
    case $1 in
        --mps) mps=1; shift; continue ;;
        --stage) stage=$2 ;;
        --out) out=$2 ;;
        --model) model=$2 ;;
        --data) data=$2 ;;
        --seconds) seconds=$2 ;;
        --jobs) jobs=$2 ;;
        --device) device=$2 ;;
        --scale) scale=$2 ;;
        --from) earlier=$2 ;;
        *) echo "unknown argument: $1" >&2; exit 2 ;;
    esac
    shift 2
done
case $stage in
    ptq) plans="ptq_qlora" ;;
    papers) plans="plr ptq_qlora scale plr_recipe" ;;
    methods) plans="methods${model:+ methods_real}" ;;
    all) plans="plr ptq_qlora scale plr_recipe methods${model:+ methods_real}" ;;
    *) plans=$stage ;;
esac
mkdir -p "$out"
if [ -n "$earlier" ]; then cp "$earlier" "$out/cells.json"; fi
if [ -d .gpu ]; then export PYTHONPATH="$PWD/.gpu${PYTHONPATH:+:$PYTHONPATH}"; fi
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")" cells.XXXXXX)
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor  # the first worker compiles, the others read
ended() {
    if [ -n "$mps" ]; then echo quit | nvidia-cuda-mps-control >/dev/null 2>&1; fi
    rm -rf "$scratch"
}
trap ended EXIT

{ nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader; } 2>/dev/null
if [ -n "$mps" ]; then
    export CUDA_MPS_PIPE_DIRECTORY=$scratch/mps CUDA_MPS_LOG_DIRECTORY=$scratch/mps-log
    mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" "$CUDA_MPS_LOG_DIRECTORY"
    command -v nvidia-cuda-mps-control && nvidia-cuda-mps-control -d &&
        timeout 30 python3 -c 'import torch; print("mps:", torch.ones(2, device="cuda").sum())' ||
        { echo "mps does not run here"; echo quit | nvidia-cuda-mps-control; mps=""
          unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY; } 2>/dev/null
fi
left=$((seconds - SECONDS))
timeout --kill-after=5 $((left + 20)) python3 -m experiments.run $plans ${model:+--model "$model"} --data "$data" \
    --jobs "$jobs" --seconds "$left" --device "$device" --scale "$scale" --out "$out" --scratch "$scratch/runs" \
    >"$out/run.log" 2>&1
echo "exit code $?, $SECONDS s of $seconds"
tail -n 3 "$out/run.log"
(cd "$out" && tar czf logs.tgz logs run.log && rm -rf logs)
