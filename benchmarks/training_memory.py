"""Whether the memory of a training grows: every project's `train.py`, 50 epochs on demo data of its own.

    python benchmarks/training_memory.py
    python benchmarks/training_memory.py --only implant

Small models, all parts of which learn from the first epochs on; a loader process, TensorBoard, pictures and checkpoints
as by default. At each line of metrics.jsonl, at the end of an epoch, the resident memory of the process and its
children is read. Growth is the median of the last ten epochs against that of the epochs 6 to 15; the trend is the
median change from one of the last 30 epochs to the one 15 later, which chance and what is allocated once do not move.
Target: growth of at most 2 %.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
from results import CPU, ROOT, Result, show

from core.args import ArgumentParser

TARGET, EPOCHS = 2, 50
COMMON = f"--epochs {EPOCHS} --num_workers 1 --lr 1e-3 --save_dir {{folder}}/run"
COMMANDS = {  # demo data, what else is needed before, and the training
    "cephalometric": (
        "make_demo_data.py --output {folder}/Aariz --cases 12",
        f"train.py {COMMON} --dataset_path {{folder}}/Aariz --cache_dir {{folder}}/cache --no-pretrained "
        "--backbone hrnet_w18_small --image_size 64 64 --heatmap_size 32 --batch_size 4 --expansion none",
    ),
    "ct_multilabel": (
        "make_demo_data.py --output {folder}/CT-RATE --patients 16",
        "extract_slices.py --dataset_path {folder}/CT-RATE --output {folder}/slices --size 32 --slices 4",
        f"train.py {COMMON} --slices_path {{folder}}/slices --model test_resnet --no-pretrained --tune_fraction 0.25 "
        "--slices_per_volume 2 --batch_size 8 --use_advanced_aug --early_stopping_patience 0",
    ),
    "ear_teacher": (
        "make_demo_data.py --output {folder} --images 30 --size 96",
        f"train.py {COMMON} --train_manifest {{folder}}/train_teacher.npy --val_manifest {{folder}}/val_teacher.npy "
        "--sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 8 --perceptual_weight 0 --batch_size 4",
    ),
    "hyperspectral": (
        "make_demo_data.py --output {folder} --cases 16 --size 40 --workers 1",
        f"train.py {COMMON} --csv_file {{folder}}/dataset.csv --img_size 40 --patch_size 10 5 --embed_dim 32 "
        "--encoder_depth 2 --encoder_num_heads 2 --decoder_embed_dim 32 --decoder_depth 1 --decoder_num_heads 2 "
        "--batch_size 4 --nb_to_plot 2 --dpi 50",
    ),
    "implant": (
        "make_demo_data.py --output {folder} --patients 12 --size 96",
        f"train.py {COMMON} --train_json {{folder}}/train.json --val_json {{folder}}/val.json --embeddings none "
        "--model_size tiny --image_size 32 --no-pretrained --batch_size 4 --unfreeze_schedule 1 2",
    ),
}


def start(project: str, command: str, folder: Path) -> subprocess.Popen:
    script, *arguments = command.format(folder=folder / "data").split()
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen([sys.executable, ROOT / project / script, *arguments], stdout=log, stderr=log)


def last_line(folder: Path) -> str:
    return (folder / "log.txt").read_text().strip().rpartition("\n")[2]


def resident(process: psutil.Process) -> int:
    """Bytes of a process and its children; those that are just ending count as nothing."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total


def megabytes(project: str) -> list[float]:
    """After each epoch of a training."""
    with tempfile.TemporaryDirectory() as name:
        folder, sizes = Path(name), []
        *before, training = COMMANDS[project]
        for command in before:
            if start(project, command, folder).wait():
                raise RuntimeError(f"{project}, {command.split()[0]}: {last_line(folder)}")
        training = start(project, training, folder)
        log, process = folder / "data" / "run" / "metrics.jsonl", psutil.Process(training.pid)
        while training.poll() is None:
            epochs = log.read_bytes().count(b"\n") if log.exists() else 0
            if epochs > len(sizes):
                sizes.append(resident(process) / 1e6)
            time.sleep(0.02)
        if training.returncode or len(sizes) != EPOCHS:
            raise RuntimeError(f"{project} ended after {len(sizes)} epochs: {last_line(folder)}")
        return sizes


def measure(projects: Sequence[str] = tuple(COMMANDS)) -> list[Result]:
    results = []
    for project in projects:
        sizes = np.array(megabytes(project))
        early, late = np.median(sizes[5:15]), np.median(sizes[-10:])
        trend = float(np.median(sizes[-15:] - sizes[-30:-15])) / 15
        details = {"megabytes": sizes.round(1).tolist(), "grown_megabytes": round(float(late - early), 1)}
        details |= {"trend_kilobytes_an_epoch": round(1000 * trend, 1), "machine": CPU}
        growth = round(100 * float(late / early - 1), 2)
        results.append(Result(f"{project}, epoch 10 to {EPOCHS}", growth, f"<= {TARGET}", "% more memory", details))
    return results


def main(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS), metavar="PROJECT")
    show(measure(parser.parse_args(argv).only))


if __name__ == "__main__":
    main()
