"""From a fresh clone to trained models and their reports. Needs Python 3.10 or newer, nothing else.

    python quickstart.py            demo data -> train -> evaluate -> predict in every project, and one page of results
    python quickstart.py PROJECT    the same in one: cephalometric, ct_multilabel, ear_teacher, hyperspectral, implant
    python quickstart.py test       the test suite; further words go to pytest
    python quickstart.py install    the environment only

Makes .venv and installs requirements.txt there, once; later calls install nothing unless requirements.txt changed.
"""

# Standard library only, and syntax that old Pythons parse, so that they can be told what is wrong.
from __future__ import print_function

import collections
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
STAMP = os.path.join(VENV, "installed.txt")
OUTPUT = "runs/quickstart"
OLDEST = (3, 10)
LANES = 2  # projects at a time: networks as small as these do not keep two cores busy
MARGIN = "%-13s | "  # before a project's lines, where there are other lanes

# What a project does, as a reader would type it; {out} is its folder of results. Then what the page shows of it.
Project = collections.namedtuple("Project", "title steps picture caption reports")
PROJECTS = collections.OrderedDict()  # in an order that ends both lanes at about the same time

PROJECTS["ear_teacher"] = Project(
    "Ears: a teacher of anatomy, and what it teaches",
    [
        ("draw demo ears", "make_demo_data.py --output {out}/ears --images 1000 --overwrite"),
        ("check the model", "test_sam_model.py --sam_config tiny --sam_image_size 128"),
        (
            "train the teacher",
            """train.py --train_manifest {out}/ears/train_teacher.npy --val_manifest {out}/ears/val_teacher.npy
            --save_dir {out}/run --overwrite --sam_config tiny --sam_image_size 128 --image_size 64 --latent_dim 8
            --perceptual_weight 0 --no-augment --epochs 15 --valid_interval 5 --batch_size 16 --lr 2e-3
            --warmup_epochs 1 --num_workers 0 --log_with none""",
        ),
        (
            "evaluate it on held-out ears",
            """evaluate.py --checkpoint {out}/run/best --manifest {out}/ears/test_teacher.npy --output {out}/evaluation
            --num_workers 0""",
        ),
        (
            "eigenears: in what do ears differ?",
            "eigenears/create_eigenears.py --checkpoint {out}/run/best --output {out}/eigenears --num_workers 0",
        ),
        (
            "train a detector on it",
            """train_detector.py --teacher {out}/run/best --save_dir {out}/detector_taught --overwrite
            --train_manifest {out}/ears/train_detector.npy --val_manifest {out}/ears/val_detector.npy --epochs 4
            --windows 4 --batch_size 8 --encoder_lr_scale 1 --warmup_epochs 0.3 --num_workers 0 --log_with none""",
        ),
        (
            "train the same detector from scratch",
            """train_detector.py --sam_config tiny --sam_image_size 128 --latent_dim 8
            --save_dir {out}/detector_scratch --overwrite
            --train_manifest {out}/ears/train_detector.npy --val_manifest {out}/ears/val_detector.npy --epochs 4
            --windows 4 --batch_size 8 --encoder_lr_scale 1 --warmup_epochs 0.3 --num_workers 0 --log_with none""",
        ),
        (
            "evaluate both on held-out pictures",
            """evaluate_detector.py --checkpoint {out}/detector_taught/best --compare {out}/detector_scratch/best
            --manifest {out}/ears/test_detector.npy --output {out}/detection""",
        ),
    ],
    "detection/figures/typical.png",
    "What the taught detector says of held-out pictures",
    ["detection/report.html", "evaluation/report.html", "eigenears/report.html"],
)

PROJECTS["hyperspectral"] = Project(
    "Hyperspectral retinas",
    [
        ("draw demo retinas", "make_demo_data.py --output {out}/cubes --cases 200 --size 96 --overwrite"),
        ("measure the training cubes", "cubes.py stats --csv_file {out}/cubes/dataset.csv"),
        (
            "train",
            """train.py --csv_file {out}/cubes/dataset.csv --save_dir {out}/run --overwrite --model mae_tiny
            --img_size 96 --patch_size 16 5 --embed_dim 128 --encoder_depth 4 --encoder_num_heads 4 --decoder cross
            --decoder_depth 2 --batch_size 8 --epochs 75 --warmup_epochs 7 --lr 2e-3 --valid_interval 25
            --num_workers 0 --log_with none""",
        ),
        (
            "evaluate on held-out cubes",
            """evaluate.py --checkpoint {out}/run/best --csv_file {out}/cubes/dataset.csv --mask_seeds 2 --batch_size 8
            --output {out}/evaluation""",
        ),
        (
            "features and reconstructions, as for your own cubes",
            """predict.py --checkpoint {out}/run/best --reconstruct --output {out}/features
            --input {out}/cubes/cubes/P0003_R.h5 {out}/cubes/cubes/P0003_L.h5""",
        ),
        (
            "probe: do the features know the lesions?",
            """probe.py --checkpoint {out}/run/best --csv_file {out}/cubes/dataset.csv --save_dir {out}/probe
            --overwrite --num_workers 1""",
        ),
    ],
    "features/P0003_L_figures/reconstructions.png",
    "A held-out cube, what the model sees of it, and what it makes of that",
    ["evaluation/report.html", "probe/report.html"],
)

PROJECTS["ct_multilabel"] = Project(
    "Abnormalities on chest CT",
    [
        ("draw demo chests", "make_demo_data.py --output {out}/CT-RATE --patients 160 --overwrite"),
        (
            "extract slices",
            """extract_slices.py --dataset_path {out}/CT-RATE --output {out}/slices --slices 16 --size 96
            --field_mm 320 --overwrite""",
        ),
        (
            "train",
            """train.py --slices_path {out}/slices --save_dir {out}/run --overwrite --model test_resnet
            --no-pretrained --pooling avgmax --aggregate attention --slices_per_volume 6 --batch-size 36
            --loss-type bce --learning-rate 4e-3 --dropout 0.1 --epochs 20 --num_workers 1 --log_with none""",
        ),
        (
            "evaluate on held-out patients",
            "evaluate.py --checkpoints {out}/run/best --slices_path {out}/slices --output {out}/evaluation",
        ),
        (
            "predict, as for your own volumes",
            """predict.py --checkpoints {out}/run/best --output {out}/predictions
            --input {out}/CT-RATE/dataset/valid_fixed/valid_1/valid_1_a""",
        ),
    ],
    "predictions/valid_1_a_1.png",
    "Slices of a held-out scan in which the model saw findings, with maps of where",
    ["evaluation/report.html"],
)

PROJECTS["implant"] = Project(
    "Sizes of dental implants",
    [
        ("draw demo implants", "make_demo_data.py --output {out}/implants --patients 450 --overwrite"),
        (
            "learn the companies",
            """train_classifier.py --target company --train_json {out}/implants/train.json
            --val_json {out}/implants/val.json --save_dir {out}/company --overwrite --model_size tiny --conv_stem
            --no-pretrained --image_size 64 --no-augment --margin 0 --batch_size 16 --lr 5e-4 --epochs 6
            --warmup_epochs 0.5 --num_workers 0 --log_with none""",
        ),
        (
            "learn the models, from there on",
            """train_classifier.py --target model --visual_checkpoint {out}/company/best
            --train_json {out}/implants/train.json --val_json {out}/implants/val.json --save_dir {out}/model --overwrite
            --model_size tiny --conv_stem --no-pretrained --image_size 64 --no-augment --margin 0 --batch_size 16
            --lr 5e-4 --epochs 3 --warmup_epochs 0.5 --num_workers 0 --log_with none""",
        ),
        (
            "learn sizes from pictures alone",
            """train.py --embeddings none --visual_checkpoint {out}/model/best --train_json {out}/implants/train.json
            --val_json {out}/implants/val.json --save_dir {out}/visual --overwrite --image_size 64 --no-augment
            --margin 0 --batch_size 16 --lr 5e-4 --epochs 6 --warmup_epochs 0.5 --unfreeze_schedule 0 0
            --embedding_lr_multiplier 1 --num_workers 0 --log_with none""",
        ),
        (
            "learn sizes with both embeddings",
            """train.py --company_checkpoint {out}/company/best --model_checkpoint {out}/model/best
            --visual_checkpoint {out}/visual/best --cache_features --train_json {out}/implants/train.json
            --val_json {out}/implants/val.json --save_dir {out}/dual --overwrite --image_size 64 --no-augment
            --margin 0 --batch_size 16 --lr 5e-4 --epochs 20 --unfreeze_schedule 20 20 --num_workers 0
            --log_with none""",
        ),
        (
            "evaluate on held-out patients",
            """evaluate.py --checkpoints {out}/dual/best --compare {out}/visual --test_json {out}/implants/test.json
            --calibration_json {out}/implants/val.json --output {out}/evaluation --num_workers 0 --bootstrap 500""",
        ),
        (
            "predict, as for your own pictures",
            """predict.py --checkpoints {out}/dual/best --input {out}/implants/test.json --output {out}/predictions""",
        ),
    ],
    "predictions/overview.png",
    "Held-out implants with what the model says of them",
    ["evaluation/report.html"],
)

PROJECTS["cephalometric"] = Project(
    "Landmarks on lateral cephalograms",
    [
        ("draw demo cephalograms", "make_demo_data.py --output {out}/Aariz --cases 72 --overwrite"),
        (
            "train",
            """train.py --dataset_path {out}/Aariz --save_dir {out}/run --overwrite --cache_dir {out}/cache
            --expansion none --backbone hrnet_w18_small --no-pretrained --image_size 192 192 --heatmap_size 48
            --sigma 1.5 --batch_size 6 --epochs 20 --warmup_epochs 2 --lr 2e-3 --num_workers 1 --log_with none""",
        ),
        (
            "refine: a second stage on native crops",
            """train_refiner.py --checkpoint {out}/run/best --dataset_path {out}/Aariz --save_dir {out}/refiner
            --overwrite --cache_dir {out}/cache --backbone hrnet_w18_small --no-pretrained --crop_size 64
            --crop_mm_per_px 0.2 --heatmap_size 16 --sigma 1.5 --batch_size 2 --crops_per_image 12 --epochs 8
            --warmup_epochs 1 --lr 2e-3 --num_workers 1 --log_with none""",
        ),
        (
            "evaluate on held-out cases",
            """evaluate.py --checkpoint {out}/run/best --refiner {out}/refiner/best --dataset_path {out}/Aariz
            --cache_dir {out}/cache --output {out}/evaluation""",
        ),
        (
            "predict, as for your own pictures",
            """predict.py --checkpoint {out}/run/best --refiner {out}/refiner/best --pixel_size 0.089
            --image {out}/Aariz/test/Cephalograms/phantom_0061.png --output {out}/predictions""",
        ),
    ],
    "predictions/phantom_0061_tracing.png",
    "Landmarks found on a held-out head, and the planes that are measured between them",
    ["evaluation/report.html"],
)


def main(arguments):
    if sys.version_info < OLDEST:
        stop("Python %d.%d or newer is needed; this is %s" % (OLDEST + (sys.version.split()[0],)))
    command = arguments[0] if arguments else "all"
    if command in ("-h", "--help"):
        print(__doc__)
        return 0
    if command not in ["all", "test", "install"] + list(PROJECTS) or (len(arguments) > 1 and command != "test"):
        stop("usage: python quickstart.py [test | install | %s]" % " | ".join(PROJECTS))
    install()
    if command == "install":
        return 0
    if command == "test":
        return run(["-m", "pytest", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile"] + arguments[1:])
    return demonstrate(list(PROJECTS) if command == "all" else [command])


def install():
    """Makes .venv and installs requirements.txt, unless that is done."""
    with open(REQUIREMENTS, "rb") as file:
        wanted = "%s %s" % (sys.version.split()[0], hashlib.sha256(file.read()).hexdigest())
    if os.path.exists(STAMP):
        with open(STAMP) as file:
            if file.read() == wanted:
                return
    print("installing into %s (about 6 GB on Linux, a few minutes, once)" % VENV)
    try:
        import ensurepip  # noqa: F401  (Debian packs it apart from venv)
        import venv
    except ImportError:
        stop("this Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv) and run again")
    venv.create(VENV, with_pip=True, clear=True)
    pip = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
    if subprocess.call(pip) != 0:
        stop("pip could not install requirements.txt (see above): check the internet connection or proxy and run again")
    with open(STAMP, "w") as file:
        file.write(wanted)


def demonstrate(names):
    """Runs the steps of these projects, then writes the page over all that have results, and says where it is."""
    start, lanes = time.time(), min(LANES, len(names), os.cpu_count() or 1)
    waiting, failed = collections.deque(names), []
    threads = [threading.Thread(target=work, args=(waiting, failed, lanes)) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        stop("%s: this step failed; what it said stands above" % failed[0])
    index = OUTPUT + "/index.html"
    overview = ["-m", "core.report", index, "--title", "Quickstart", "--note"]
    overview += ["All data are drawn and show no patient: the numbers say that the parts work together, no more."]
    for name, project in sorted(PROJECTS.items()):
        files = ["%s/%s/%s" % (OUTPUT, name, file) for file in [project.picture] + project.reports]
        if all(os.path.exists(os.path.join(ROOT, file)) for file in files):
            overview += ["--project", project.title, files[0], project.caption] + files[1:]
    if run(overview) != 0:
        stop("the page of results could not be written")
    print("\nDone in %d min %02d s. Open:\n   %s" % (divmod(time.time() - start, 60) + (os.path.join(ROOT, index),)))
    return 0


def work(waiting, failed, lanes):
    """Takes projects from `waiting` and runs their steps, until there is none or a step has failed."""
    while waiting and not failed:
        name = waiting.popleft()
        for number, (what, line) in enumerate(PROJECTS[name].steps, 1):
            script = line.format(out="%s/%s" % (OUTPUT, name)).split()
            script[0] = "%s/%s" % (name, script[0])
            title = "%s %d/%d: %s" % (name, number, len(PROJECTS[name].steps), what)
            say("\n== %s\n   python %s" % (title, " ".join(script)))
            if run(script, lanes, name) != 0:
                failed.append(title)
            if failed:
                return


def run(arguments, lanes=1, project=""):
    """Runs Python of the environment from the repository's root; returns its exit code. Where there are other lanes,
    the project's name stands before its lines."""
    environment = dict(os.environ)
    if project:  # alone, too, it gets a lane's share of the cores: more threads would add in another order
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // LANES)))
    if lanes == 1:
        return subprocess.call([PYTHON] + arguments, cwd=ROOT, env=environment)
    environment.update(PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    environment["COLUMNS"] = str(max(60, shutil.get_terminal_size((120, 24)).columns - len(MARGIN % "")))  # of tables
    process = subprocess.Popen(
        [PYTHON] + arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    for line in process.stdout:
        say(MARGIN % project + line.decode("utf-8", "replace").rstrip())
    return process.wait()


def say(text):
    """Prints in one piece, whatever other threads print."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def stop(message):
    sys.stdout.flush()
    sys.stderr.write("error: %s\n" % message)
    sys.exit(2)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
