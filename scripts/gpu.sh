#!/usr/bin/env bash
# Everything that is tested and measured on a GPU, unattended, in about a quarter of an hour (STEPS runs a part of it):
#
#     scripts/gpu.sh [OUT] [WHEELS]
#
# OUT: folder for logs and results (default out/gpu). WHEELS: a folder of wheels that are installed first, without
# network (default: none). PYTHON is an interpreter with torch and transformers (default python3).
# A step that fails or takes too long does not stop the others; the last lines say how each ended.
# DEVICE=cpu LAYERS=1 BATCHES=1 SIDE=224 tries the script without a GPU. LIMIT is the seconds of a step (default 240).
# STEPS is a pattern of the names of steps that run (default: all), ROUNDS the repeats of a profile (default 9).
# TRAIN ("600 900") and SCENES (8000) are how long the embedded LLaVA is trained; "2000 3000" and 40000 are all of it.
# SAMPLES are the questions of a task of lmms-eval (64), which runs if the wheels have it.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-out/gpu}
WHEELS=${2:-}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
BATCHES=${BATCHES:-1 8}
SIDE=${SIDE:-1008}
LIMIT=${LIMIT:-240}
STEPS=${STEPS:-.}
ROUNDS=${ROUNDS:-9}
TRAIN=${TRAIN:-600 900}
SCENES=${SCENES:-8000}
SAMPLES=${SAMPLES:-64}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
if [ -n "$WHEELS" ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --target "$OUT/site" "$WHEELS"/*.whl || exit
fi
export PYTHONPATH="$PWD${WHEELS:+:$OUT/site}${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

: > "$OUT/summary.txt"
step() { # NAME COMMAND...: its output goes to NAME.log
    local name=$1 started=$SECONDS
    shift
    [[ $name =~ $STEPS ]] || return
    timeout --signal INT --kill-after 10 "$LIMIT" "$@" > "$OUT/$name.log" 2>&1
    local code=$?
    printf '%-28s exit %-3s %4d s\n' "$name" "$code" "$((SECONDS - started))" | tee -a "$OUT/summary.txt"
}
profile() { # NAME ARGUMENTS...
    local name=$1
    shift
    step "$name" "$PYTHON" -m tokenprune -q profile --device "$DEVICE" ${LAYERS:+--layers "$LAYERS"} \
        --rounds "$ROUNDS" --json "$OUT/$name.json" "$@"
}

if [ "$DEVICE" = cuda ]; then
    step machine nvidia-smi
fi
step versions "$PYTHON" -c 'import torch, transformers, triton; print(torch.__version__, transformers.__version__, triton.__version__)'
# Speed first: whatever comes after may run out of time.
step bench-ops "$PYTHON" -m tokenprune.eval.bench_ops --device "$DEVICE" --json "$OUT/ops-$DEVICE.json"
for batch in $BATCHES; do
    profile "profile-llava-1.5-7b-batch-$batch-$DEVICE" --config llava-1.5-7b --policy divprune,auto \
        --keep 0.25,0.111 --batch "$batch"
done
for config in qwen2.5-vl-7b qwen3-vl-8b; do
    profile "profile-$config-$DEVICE" --config "$config" --policy divprune,divprune@pixels,auto --keep 0.25,0.1 \
        --image-size "$SIDE"
done
step caches "$PYTHON" -m tokenprune.eval.bench_caches --config llava-1.5-7b --device "$DEVICE" \
    --layers "${LAYERS:-8}" --rounds 3 --json "$OUT/caches-llava-1.5-7b-$DEVICE.json"
step caches-batch-8 "$PYTHON" -m tokenprune.eval.bench_caches --config llava-1.5-7b --device "$DEVICE" --batch 8 \
    --layers "${LAYERS:-8}" --rounds 3 --json "$OUT/caches-llava-1.5-7b-batch-8-$DEVICE.json"
for config in llava-next-7b llava-onevision-7b; do
    step "draft-steps-$config" "$PYTHON" -m tokenprune.eval.bench_drafts --config "$config" --device "$DEVICE" \
        --layers "${LAYERS:-8}" --keep 0.1,0.25 --json "$OUT/draft-steps-$config-$DEVICE.json"
done
# What the tests of the ops compile for other devices needs none.
workers=$("$PYTHON" -c 'import importlib.util as i; print("-n8" if i.find_spec("xdist") else "")')
step test-models "$PYTHON" -m pytest -q -p no:cacheprovider $workers tests/gpu
step test-ops "$PYTHON" -m pytest -q -p no:cacheprovider $workers tests/ops --ignore tests/ops/test_compilers.py
step test-flash-attention "$PYTHON" -m pytest -q -p no:cacheprovider tests/patches/test_decoder_stage.py -k flash
# Two processes on one device, with groups of their own: NCCL allows one process of a group to a device.
both() {
    local pids=() code=0 pid
    for n in 1 2; do
        if "$PYTHON" -c 'import lmms_eval' 2> /dev/null; then
            "$PYTHON" -m lmms_eval --model tokenprune_hf --tasks tokenprune_embedded --batch_size 16 --limit "$SAMPLES" \
                --model_args "pretrained=embedded,policy=divprune,keep=0.$n,device=$DEVICE" \
                --include_path "$("$PYTHON" -m tokenprune.eval.lmms)" --output_path "$OUT/lmms-$n" & pids+=($!)
        else # the wheels have no lmms-eval
            "$PYTHON" -m tokenprune -q profile --model embedded --policy divprune --keep 0.25 --device "$DEVICE" \
                --json "$OUT/process-$n.json" & pids+=($!)
        fi
    done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    return "$code"
}
export -f both
export PYTHON DEVICE OUT SAMPLES
step two-processes bash -c both
# Minutes of the embedded LLaVA's training, and a few steps of that for easy-VQA, if its data are there.
step train-llava "$PYTHON" -m tokenprune.eval.minivlm.train --model llava --out "$OUT/train-llava" --device "$DEVICE" \
    --steps $TRAIN --scenes "$SCENES" --fast $([ "$DEVICE" = cpu ] && echo --fp32)
if "$PYTHON" -c 'import easy_vqa' 2> /dev/null; then
    step train-easy-vqa "$PYTHON" -m tokenprune.eval.minivlm.easy_vqa.train --out "$OUT/train-easy-vqa" \
        --device "$DEVICE" --steps 60 100
fi
echo "results: $OUT"
grep -qv 'exit 0 ' "$OUT/summary.txt" && exit 1
exit 0
