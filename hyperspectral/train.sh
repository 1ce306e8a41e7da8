#!/usr/bin/env bash
# The reference's default model. Paths are relative to where you are; more flags are passed on, and win:
#   hyperspectral/train.sh --csv_file /data/cubes.csv --resume
set -euo pipefail
exec accelerate launch "$(dirname "${BASH_SOURCE[0]}")/train.py" \
    --csv_file dataset.csv \
    --model mae_medium \
    --batch_size 6 \
    --epochs 200 \
    --valid_interval 5 \
    --accumulate_grad_batches 1 \
    --mask_ratio 0.8 \
    --mixed_precision \
    "$@"
