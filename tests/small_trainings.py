"""The smallest real training of each project: its own demo data, its own `train.py` and `evaluate.py`.

Words in braces stand for folders: {data} holds what the preparation has drawn, {out} is where results go.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from launch import run

COMMON = "--num_workers 0 --log_with none --lr 2e-3 --epochs 3 --save_dir {out}"
MANIFESTS = "--train_manifest {data}/train_teacher.npy --val_manifest {data}/val_teacher.npy"
RECORDS = "--train_json {data}/train.json --val_json {data}/val.json --image_size 32 --no-pretrained --batch_size 4"
VIT = RECORDS + " --model_size tiny --conv_stem --embedding_dim 16 --num_workers 0 --log_with none --epochs 1"
EMBEDDINGS = "--company_checkpoint {data}/company/best --model_checkpoint {data}/model/best"


class Commands(NamedTuple):
    """Scripts of a project with their arguments, parted at spaces."""

    prepare: tuple[str, ...]
    train: str
    evaluate: str  # on a number of cases that two does not divide
    predict: str


COMMANDS = {
    "cephalometric": Commands(
        ("make_demo_data.py --output {data}/Aariz --cases 20 --seed 1",),
        f"train.py {COMMON} --dataset_path {{data}}/Aariz --cache_dir {{data}}/cache --backbone hrnet_w18_small "
        "--no-pretrained --image_size 64 64 --heatmap_size 32 --sigma 1.5 --batch_size 4 --warmup_epochs 1 "
        "--expansion none",
        "evaluate.py --dataset_path {data}/Aariz --cache_dir {data}/cache --checkpoint {run}/best --output {out}",
        "predict.py --image {data}/Aariz/test/Cephalograms --checkpoint {run}/best --output {out}",
    ),
    "ct_multilabel": Commands(
        (
            "make_demo_data.py --output {data}/CT-RATE --patients 20 --seed 1",
            "extract_slices.py --dataset_path {data}/CT-RATE --output {data}/slices --size 32 --slices 4",
        ),
        f"train.py {COMMON} --slices_path {{data}}/slices --model test_resnet --no-pretrained --use-attention cbam "
        "--loss-type asl --tune_fraction 0.25 --slices_per_volume 2 --batch_size 8 --use-advanced-aug "
        "--progressive-unfreeze --unfreeze-epoch 1 --unfreeze-every 1",
        "evaluate.py --slices_path {data}/slices --checkpoints {run}/best --output {out} --bootstrap 20",
        "predict.py --input {data}/CT-RATE/dataset/valid_fixed/valid_3 --checkpoints {run}/best --output {out}",
    ),
    "ear_teacher": Commands(
        ("make_demo_data.py --output {data} --images 30 --size 96",),
        f"train.py {COMMON} {MANIFESTS} --sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 8 "
        "--perceptual_weight 0 --batch_size 4 --freeze_layers 2 --nb_to_plot 2",
        "evaluate.py --manifest {data}/test_teacher.npy --checkpoint {run}/best --output {out} --num_workers 0 "
        "--bootstrap 20 --nb_to_plot 1",
        "predict.py --input {data}/val_teacher.npy --checkpoint {run}/best --output {out} --reconstruct",
    ),
    "hyperspectral": Commands(
        (
            "make_demo_data.py --output {data} --cases 22 --size 40 --workers 1",
            "cubes.py stats --csv_file {data}/dataset.csv --workers 1",
        ),
        f"train.py {COMMON} --csv_file {{data}}/dataset.csv --img_size 40 --patch_size 10 5 --embed_dim 32 "
        "--encoder_depth 2 --encoder_num_heads 2 --decoder_embed_dim 32 --decoder_depth 1 --decoder_num_heads 2 "
        "--batch_size 4 --warmup_epochs 1 --nb_to_plot 2 --dpi 50",
        "evaluate.py --csv_file {data}/dataset.csv --checkpoint {run}/best --output {out} --mask_seeds 1 "
        "--bootstrap 20 --nb_to_plot 1",
        "predict.py --csv_file {data}/dataset.csv --checkpoint {run}/best --output {out}",
    ),
    "implant": Commands(
        (
            "make_demo_data.py --output {data} --patients 12 --size 96",
            f"train_classifier.py --target company --save_dir {{data}}/company {VIT}",
            f"train_classifier.py --target model --save_dir {{data}}/model {VIT}",
        ),
        f"train.py {COMMON} {RECORDS} {EMBEDDINGS} --model_size tiny --embedding_dim 16 --unfreeze_schedule 1 2",
        "evaluate.py --checkpoints {run}/best --test_json {data}/test.json --output {out} --bootstrap 20 "
        "--num_workers 0 --batch_size 3",
        "predict.py --checkpoints {run}/best --input {data}/images --output {out}",
    ),
}


class SmallTraining:
    """A project with data drawn for it. `data` is not to be written to."""

    def __init__(self, project: str, shared: Path):
        """Data are drawn once in `shared`, which several test processes may use."""
        self.project, self.data = project, shared / project
        if self.data.exists():
            return
        drawing = shared / f"{project}.{os.getpid()}"
        for line in COMMANDS[project].prepare:
            script, *arguments = line.format(data=drawing).split()
            done = run(f"{project}/{script}", *arguments)
            assert done.returncode == 0, done.stderr
        try:
            drawing.rename(self.data)
        except OSError:  # another process was first
            shutil.rmtree(drawing)

    def training(self, out: Path | str, *more) -> list[str]:
        """`train.py`, as it lies in the project, with arguments; results go to `out`."""
        script, *arguments = COMMANDS[self.project].train.format(data=self.data, out=out).split()
        return [f"{self.project}/{script}", *arguments, *map(str, more)]

    def evaluation(self, trained: Path, out: Path | str, *more) -> list[str]:
        """`evaluate.py` with arguments, of the best model in `trained`."""
        script, *arguments = COMMANDS[self.project].evaluate.format(data=self.data, run=trained, out=out).split()
        return [f"{self.project}/{script}", *arguments, *map(str, more)]
