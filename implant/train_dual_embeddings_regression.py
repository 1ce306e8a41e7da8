"""train.py under its name in the reference, with the same flags.

    python train_dual_embeddings_regression.py --train_json augmented_train.json --val_json augmented_val.json \
        --company_checkpoint vit_company.pth --model_checkpoint vit_model.pth --attention_type triple --epochs 50
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

from core.args import script
from train import main

if __name__ == "__main__":
    script(main)
