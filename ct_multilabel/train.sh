#!/usr/bin/env bash
# Strategy 2 of the README, maximum performance. Paths are relative to the working directory; further flags override:
#   ct_multilabel/train.sh --slices_path /data/slices --resume
set -euo pipefail
exec accelerate launch "$(dirname "${BASH_SOURCE[0]}")/train.py" \
    --slices_path slices \
    --model efficientnet_b0 \
    --use-attention cbam \
    --loss-type asl \
    --use-advanced-aug \
    --progressive-unfreeze \
    --unfreeze-epoch 8 \
    --batch-size 32 \
    --learning-rate 1e-4 \
    --epochs 100 \
    --early-stopping-patience 15 \
    --mixed_precision \
    "$@"
