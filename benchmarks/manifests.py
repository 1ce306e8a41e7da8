"""Data checks before the first step with 100,000 rows: time and memory of each project.

    python benchmarks/manifests.py
    python benchmarks/manifests.py --only ear_teacher implant --rows 1000 10000

Each `train.py` runs, with a small model, up to its first step: manifests are read and checked, pictures decoded, cubes
and slice stores opened, data sets built. For extract_slices.py of ct_multilabel, `find_volumes` runs on a CT-RATE tree
with tables of labels and metadata. One-off work is done before: cache of letterboxed cephalograms, statistics of cubes.
Rows have their own file names, which link to a few small files: measured is the work per row, not the decoding of large
pictures, with all files in the page cache. Data sets of 10,000 and 100,000 rows are checked in separate processes,
whose memory the parent samples. Targets: 60 s for 100,000 rows, and at most 10 kB of peak memory per additional row.
"""

import csv
import importlib
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from results import CPU, ROOT, Result, show

from core.args import ArgumentParser

ROWS = (10_000, 100_000)
SECONDS, KILOBYTES = 60, 10  # targets
SOURCES = 8  # files of a split that its rows link to; file systems limit the links per file, e.g. to 65,000
RUN = "--save_dir {folder}/run --log_with none --num_workers 0"
COMMANDS = {  # arguments of train.py for `check`
    "cephalometric": f"{RUN} --dataset_path {{folder}}/Aariz --cache_dir {{folder}}/cache --backbone hrnet_w18_small "
    "--no-pretrained --image_size 32 32 --heatmap_size 16",
    "ct_multilabel": f"{RUN} --slices_path {{folder}}/slices --model test_resnet --no-pretrained",
    "ear_teacher": f"{RUN} --train_manifest {{folder}}/train.npy --val_manifest {{folder}}/val.npy --sam_config tiny "
    "--sam_image_size 128 --image_size 32 --latent_dim 8 --perceptual_weight 0",
    "hyperspectral": f"{RUN} --csv_file {{folder}}/dataset.csv --img_size 20 --patch_size 10 5 --embed_dim 32 "
    "--encoder_depth 1 --encoder_num_heads 2 --decoder_embed_dim 32 --decoder_depth 1 --decoder_num_heads 2",
    "implant": f"{RUN} --train_json {{folder}}/train.json --val_json {{folder}}/val.json --embeddings none "
    "--no-pretrained --model_size tiny --image_size 32",
}
CSV = " --train_manifest {folder}/train.csv --val_manifest {folder}/val.csv"
COMMANDS["ear_teacher (CSV)"] = COMMANDS["ear_teacher"] + CSV
METADATA = [f"Column{number}" for number in range(45)]  # about as many as in CT-RATE
TREE = "ct_multilabel (CT-RATE tree)"
NAMES = (*COMMANDS, TREE)


# ---------------------------------------------------------------------------------------------------- making data sets


def split_of(row: int) -> str:
    return "val" if row % 10 == 0 else "train"


def link_pictures(folder: Path, files: list[tuple[str, Path]]) -> None:
    """Writes (split, file) as links to a few random pictures, different ones for each split."""
    rng, sources = np.random.default_rng(0), {}
    for split in ("train", "val"):
        pictures = [folder / f"{split}_{number}.png" for number in range(SOURCES)]
        for picture in pictures:
            Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)).save(picture)
        sources[split] = cycle(pictures)
    for split, file in files:
        os.link(next(sources[split]), file)


def make_cephalometric(folder: Path, rows: int) -> None:
    from ceph.anatomy import SCHEMA
    from ceph.dataset import FrameCache

    root, pictures = folder / "Aariz", []
    points = [
        {"symbol": symbol, "value": {"x": 5 + number, "y": 50 - number}} for number, symbol in enumerate(SCHEMA.names)
    ]
    texts = {"points": json.dumps({"landmarks": points}), "stage": json.dumps({"cvm_stage": {"value": 3}})}
    places = {
        "Annotations/Cephalometric Landmarks/Junior Orthodontists": "points",
        "Annotations/Cephalometric Landmarks/Senior Orthodontists": "points",
        "Annotations/CVM Stages": "stage",
    }
    for split in ("train", "valid"):
        for place in (*places, "Cephalograms"):
            (root / split / place).mkdir(parents=True)
    sources = {}
    for kind, text in texts.items():
        files = [folder / f"{kind}_{number}.json" for number in range(4 * SOURCES)]
        for file in files:
            file.write_text(text)
        sources[kind] = cycle(files)
    for row in range(rows):
        split = {"train": "train", "val": "valid"}[split_of(row)]
        for place, kind in places.items():
            os.link(next(sources[kind]), root / split / place / f"case{row}.json")
        pictures.append((split_of(row), root / split / "Cephalograms" / f"case{row}.png"))
    link_pictures(folder, pictures)
    with open(root / "cephalogram_machine_mappings.csv", "w") as table:
        table.write("cephalogram_id,machine,pixel_size,image_format,mode\n")
        table.writelines(f"case{row},Device,0.1,png,L\n" for row in range(rows))
    cache = FrameCache(folder / "cache", (32, 32))
    for _, picture in pictures:
        cache.load(picture)


def make_ct_multilabel(folder: Path, rows: int) -> None:
    from ct.labels import LABELS
    from ct.store import StoredVolume, write_manifest, write_settings, write_slices

    store, volumes = folder / "slices", []
    settings = {"slices": 4, "size": 32, "field_mm": 360.0, "channels": "windows"}
    write_settings(store, settings)
    sources = [folder / f"{number}.h5" for number in range(SOURCES)]
    for source in sources:
        write_slices(source, np.zeros((4, 3, 32, 32), np.uint8), settings)
    rng, files = np.random.default_rng(0), cycle(sources)
    (store / "train").mkdir()
    for row in range(rows):
        patient = f"train_{row // 2}"
        volume = StoredVolume(store / "train" / f"{patient}_a_{row % 2}.h5", f"{patient}_a_{row % 2}", patient,
                              f"{patient}_a", "train", 4, rng.integers(0, 2, len(LABELS)))  # fmt: skip
        os.link(next(files), volume.file)
        volumes.append(volume)
    write_manifest(store, LABELS, volumes)


def make_tree(folder: Path, rows: int) -> None:
    """Writes a CT-RATE tree of empty files: find_volumes opens none."""
    from ct.ct_rate import labels_file, metadata_file, volume_file
    from ct.labels import LABELS

    root = folder / "CT-RATE"
    sources = [folder / f"{number}.nii.gz" for number in range(SOURCES)]
    for source in sources:
        source.touch()
    names = [f"train_{row // 2}_a_{row % 2 + 1}" for row in range(rows)]
    for name, source in zip(names, cycle(sources), strict=False):
        file = volume_file(root, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, file)
    for file, columns, value in (
        (labels_file(root, "train"), LABELS, "0"),
        (metadata_file(root, "train"), METADATA, "0.75"),
    ):
        file.parent.mkdir(parents=True)
        with open(file, "w") as table:
            table.write(",".join(("VolumeName", *columns)) + "\n")
            table.writelines(f"{name}.nii.gz" + f",{value}" * len(columns) + "\n" for name in names)


def make_ear_teacher(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    images = [f"{row // 4}_{row % 4}.png" for row in range(rows)]
    link_pictures(folder, [(split_of(row // 4), folder / image) for row, image in enumerate(images)])
    for split in ("train", "val"):
        chosen = [image for row, image in enumerate(images) if split_of(row // 4) == split]
        points = rng.uniform(10, 50, (len(chosen), 17, 2)).round(1)
        boxes = np.tile([5.0, 5.0, 60.0, 60.0], (len(chosen), 1))
        subjects = [image.partition("_")[0] for image in chosen]
        content = {"image_paths": chosen, "bboxes": boxes, "landmarks": points, "subjects": subjects}
        np.save(folder / f"{split}.npy", content, allow_pickle=True)
        with open(folder / f"{split}.csv", "w", newline="") as file:
            table = csv.writer(file)
            axes = [f"landmark_{number}_{axis}" for number in range(17) for axis in "xy"]
            table.writerow(["image", "x0", "y0", "x1", "y1", "subject", *axes])
            for image, box, subject, numbers in zip(chosen, boxes, subjects, points, strict=True):
                table.writerow([image, *box, subject, *numbers.ravel()])


def make_hyperspectral(folder: Path, rows: int) -> None:
    import h5py

    from hsi.files import H5_KEY, read_cubes
    from hsi.statistics import compute_statistics, fingerprint_of, statistics_file

    rng, sources = np.random.default_rng(0), [folder / f"{number}.h5" for number in range(SOURCES)]
    for source in sources:
        with h5py.File(source, "w") as store:
            store.create_dataset(H5_KEY, data=rng.random((30, 20, 20), np.float32))
    table, few = folder / "dataset.csv", folder / "few.csv"
    for file, number in ((table, rows), (few, SOURCES)):
        lines = [f"cube{row},{row:05}_cube.h5,P{row // 2},{split_of(row // 2)}" for row in range(number)]
        file.write_text("\n".join(("ID,hs_file,patient,split", *lines)) + "\n")
    for row, source in zip(range(rows), cycle(sources), strict=False):
        os.link(source, folder / f"{row:05}_cube.h5")
    # Statistics as measured from all cubes, which would take minutes.
    splits = read_cubes(table)
    fingerprint = {cube.id: fingerprint_of(cube) for part in splits.values() for cube in part}
    replace(compute_statistics(read_cubes(few)), fingerprint=fingerprint).save(statistics_file(table))


def make_implant(folder: Path, rows: int) -> None:
    files = [(split_of(row), folder / f"{row}.png") for row in range(rows)]
    link_pictures(folder, files)
    for split in ("train", "val"):
        records = [
            {
                "image": file.name, "company": f"company {row % 7}", "model": f"model {row % 40}", "length": 10,
                "diameter": 4.1, "patient_id": f"{split} {row // 2}", "bbox": [5, 5, 60, 60], "pixel_spacing": 0.1,
                "modality": "periapical", "thread_type": "v",
            }
            for row, (of, file) in enumerate(files)
            if of == split
        ]  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(records))


# ------------------------------------------------------------------------------------------------------------ checking


class FirstStep(Exception):
    """Raised when a training reaches its first step."""


def make(name: str, folder: Path, rows: int) -> None:
    project = name.split()[0]
    sys.path.insert(0, str(ROOT / project))
    (make_tree if name == TREE else globals()[f"make_{project}"])(folder, rows)


def check(name: str, folder: Path, connection) -> None:
    """Sends the seconds of the check (`clocks`), and keeps its data in memory until a reply."""
    sys.path.insert(0, str(ROOT / name.split()[0]))
    with redirect_stdout(io.StringIO()):
        if name == TREE:
            from core.validation import DataReport
            from ct.ct_rate import find_volumes

            start = clocks()
            kept = find_volumes(folder / "CT-RATE", DataReport(), ("train",))
        else:
            from core.run import Run

            def stop(*_, **__):
                raise FirstStep

            Run.prepare = stop
            train = importlib.import_module("train")
            start = clocks()
            try:
                train.main(COMMANDS[name].format(folder=folder).split())
            except FirstStep as reached:
                kept = reached  # its traceback keeps the data of main
    connection.send(clocks() - start)
    connection.recv()
    del kept


def clocks() -> np.ndarray:
    """(wall time, processor time of this process) in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def checked(name: str, rows: int) -> tuple[np.ndarray, int, int]:
    """Seconds (2,) as of `clocks`; bytes of memory at the peak, and after the check."""
    context = multiprocessing.get_context("spawn")  # processes without memory of this one
    with tempfile.TemporaryDirectory() as folder:
        making = context.Process(target=make, args=(name, Path(folder), rows))
        making.start()
        making.join()
        here, there = context.Pipe()
        checking = context.Process(target=check, args=(name, Path(folder), there))
        checking.start()
        there.close()  # so that recv ends with the process
        memory, peak = psutil.Process(checking.pid), 0
        while not here.poll(0.02):
            peak = max(peak, memory.memory_info().rss)
        seconds = here.recv()
        kept = memory.memory_info().rss
        here.send(None)
        checking.join()
    return seconds, max(peak, kept), kept


def measure(names: Sequence[str] = NAMES, rows: Sequence[int] = ROWS) -> list[Result]:
    """`rows`: of the smaller and the larger data set."""
    results = []
    for name in names:
        few, many = (checked(name, number) for number in rows)
        added = (many[1] - few[1]) / (rows[1] - rows[0])
        seconds, cpu = np.stack([few[0], many[0]], axis=1).round(1).tolist()
        details = {"rows": rows, "seconds": seconds, "cpu_seconds": cpu}
        details["megabytes"] = {
            "peak": [round(found[1] / 1e6) for found in (few, many)],
            "kept": [round(found[2] / 1e6) for found in (few, many)],
        }
        details |= {"links": SOURCES, "machine": f"{CPU}, files in cache"}
        results.append(Result(f"{name}, time", seconds[1], f"<= {SECONDS}", f"s for {rows[1]:,} rows", details))
        results.append(Result(f"{name}, memory", round(added / 1000, 2), f"<= {KILOBYTES}", "kB a row", details))
    return results


def main(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="data sets to check")
    parser.add_argument("--rows", type=int, nargs=2, default=ROWS, help="rows of the smaller and the larger data set")
    args = parser.parse_args(argv)
    show(measure(args.only, args.rows))


if __name__ == "__main__":
    main()
