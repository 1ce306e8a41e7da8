#!/usr/bin/env bash
# The reference's settings. Paths are relative to where you are; more flags are passed on, and win:
#   implant/train.sh --train_json /data/augmented_train.json --val_json /data/augmented_val.json
set -euo pipefail
exec accelerate launch "$(dirname "${BASH_SOURCE[0]}")/train.py" \
    --train_json augmented_train.json \
    --val_json augmented_val.json \
    --company_checkpoint runs/implant_company/best \
    --model_checkpoint runs/implant_model/best \
    --attention_type triple \
    --unfreeze_schedule 20 40 \
    --epochs 50 \
    --mixed_precision fp16 \
    "$@"
