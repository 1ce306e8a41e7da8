#!/usr/bin/env bash
# The reference's settings. Paths are relative to where you are; more flags are passed on, and win:
#   ear_teacher/train.sh --train_manifest /data/ears/train_teacher.npy --val_manifest /data/ears/val_teacher.npy
set -euo pipefail
exec accelerate launch "$(dirname "${BASH_SOURCE[0]}")/train.py" \
    --train_manifest data/preprocessed/train_teacher.npy \
    --val_manifest data/preprocessed/val_teacher.npy \
    --epochs 60 \
    --batch-size 4 \
    --lr 3e-4 \
    --precision 16-mixed \
    "$@"
