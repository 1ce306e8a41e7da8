"""From a fresh clone to a trained model and its report. Needs Python 3.10 or newer, nothing else.

    python quickstart.py            demo data -> train -> evaluate -> predict, and where to look
    python quickstart.py test       the test suite
    python quickstart.py install    the environment only

Makes .venv and installs requirements.txt there, once; later calls install nothing unless requirements.txt changed.
"""

# Standard library only, and syntax that old Pythons parse, so that they can be told what is wrong.
from __future__ import print_function

import hashlib
import os
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "Scripts", "python.exe") if os.name == "nt" else os.path.join(VENV, "bin", "python")
REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
STAMP = os.path.join(VENV, "installed.txt")
OUTPUT = os.path.join("runs", "quickstart")
OLDEST = (3, 10)


def ceph(script, *arguments):
    return call("cephalometric", script, arguments)


def ct(script, *arguments):
    return call("ct_multilabel", script, arguments)


def retina(script, *arguments):
    return call("hyperspectral", script, arguments)


def ear(script, *arguments):
    return call("ear_teacher", script, arguments)


def implant(script, *arguments):
    return call("implant", script, arguments)


def call(project, script, arguments):
    return [os.path.join(project, script)] + [str(argument) for argument in arguments]


# Each project: (title, steps, pages to look at). A step is (what it does, script with arguments).
CEPH = os.path.join(OUTPUT, "cephalometric")
CEPH_DATA = os.path.join(CEPH, "Aariz")
CEPH_RUN = os.path.join(CEPH, "run")
CEPH_REFINER = os.path.join(CEPH, "refiner")
CEPH_MODELS = [
    "--checkpoint", os.path.join(CEPH_RUN, "best"), "--refiner", os.path.join(CEPH_REFINER, "best"),
]  # fmt: skip
CT = os.path.join(OUTPUT, "ct_multilabel")
CT_DATA = os.path.join(CT, "CT-RATE")
CT_RUN = os.path.join(CT, "run")
RETINA = os.path.join(OUTPUT, "hyperspectral")
RETINA_DATA = os.path.join(RETINA, "cubes")
RETINA_TABLE = os.path.join(RETINA_DATA, "dataset.csv")
RETINA_RUN = os.path.join(RETINA, "run")
RETINA_MODEL = os.path.join(RETINA_RUN, "best")
EAR = os.path.join(OUTPUT, "ear_teacher")
EAR_DATA = os.path.join(EAR, "ears")
EAR_RUN = os.path.join(EAR, "run")
EAR_MODEL = os.path.join(EAR_RUN, "best")
EAR_SAM = ["--sam_config", "tiny", "--sam_image_size", 128]
DETECTOR = [
    "--train_manifest", os.path.join(EAR_DATA, "train_detector.npy"),
    "--val_manifest", os.path.join(EAR_DATA, "val_detector.npy"), "--overwrite", "--epochs", 4, "--windows", 4,
    "--batch_size", 8, "--encoder_lr_scale", 1, "--warmup_epochs", 0.3, "--num_workers", 0, "--log_with", "none",
]  # fmt: skip
TAUGHT, SCRATCH = os.path.join(EAR, "detector_taught"), os.path.join(EAR, "detector_scratch")
IMPLANT = os.path.join(OUTPUT, "implant")
IMPLANT_DATA = os.path.join(IMPLANT, "implants")
IMPLANT_RUNS = {name: os.path.join(IMPLANT, name) for name in ("company", "model", "visual", "dual")}
IMPLANT_RECORDS = [
    "--train_json", os.path.join(IMPLANT_DATA, "train.json"), "--val_json", os.path.join(IMPLANT_DATA, "val.json"),
    "--overwrite", "--image_size", 64, "--no-augment", "--margin", 0, "--batch_size", 16, "--lr", 5e-4,
    "--num_workers", 0, "--log_with", "none",
]  # fmt: skip
IMPLANT_VIT = ["--model_size", "tiny", "--conv_stem", "--no-pretrained", "--warmup_epochs", 0.5]
PROJECTS = {
    "cephalometric": (
        [
            ("draw demo cephalograms", ceph("make_demo_data.py", "--output", CEPH_DATA, "--cases", 72, "--overwrite")),
            (
                "train",
                ceph(
                    "train.py", "--dataset_path", CEPH_DATA, "--save_dir", CEPH_RUN, "--overwrite", "--cache_dir",
                    os.path.join(CEPH, "cache"), "--backbone", "hrnet_w18_small", "--no-pretrained",
                    "--image_size", 192, 192, "--heatmap_size", 48, "--sigma", 1.5, "--batch_size", 6, "--epochs", 20,
                    "--warmup_epochs", 2, "--lr", 2e-3, "--num_workers", 1, "--log_with", "none", "--expansion", "none",
                ),
            ),
            (
                "refine: a second stage on native crops",
                ceph(
                    "train_refiner.py", "--checkpoint", os.path.join(CEPH_RUN, "best"), "--dataset_path", CEPH_DATA,
                    "--save_dir", CEPH_REFINER, "--overwrite", "--cache_dir", os.path.join(CEPH, "cache"),
                    "--backbone", "hrnet_w18_small", "--no-pretrained", "--crop_size", 64, "--crop_mm_per_px", 0.2,
                    "--heatmap_size", 16, "--sigma", 1.5, "--batch_size", 2, "--crops_per_image", 12, "--epochs", 8,
                    "--warmup_epochs", 1, "--lr", 2e-3, "--num_workers", 1, "--log_with", "none",
                ),
            ),
            (
                "evaluate on held-out cases",
                ceph(
                    "evaluate.py", "--dataset_path", CEPH_DATA, "--cache_dir", os.path.join(CEPH, "cache"),
                    "--output", os.path.join(CEPH, "evaluation"), *CEPH_MODELS
                ),
            ),
            (
                "predict, as for your own pictures",
                ceph(
                    "predict.py", "--output",
                    os.path.join(CEPH, "predictions"), "--image",
                    os.path.join(CEPH_DATA, "test", "Cephalograms", "phantom_0061.png"), "--pixel_size", 0.089,
                    *CEPH_MODELS
                ),
            ),
        ],
        [
            os.path.join(CEPH, "evaluation", "report.html"),
            os.path.join(CEPH, "predictions", "phantom_0061_tracing.png"),
        ],
    ),
    "ct_multilabel": (
        [
            ("draw demo chests", ct("make_demo_data.py", "--output", CT_DATA, "--patients", 160, "--overwrite")),
            (
                "extract slices",
                ct(
                    "extract_slices.py", "--dataset_path", CT_DATA, "--output", os.path.join(CT, "slices"),
                    "--slices", 16, "--size", 96, "--field_mm", 320, "--overwrite",
                ),
            ),
            (
                "train",
                ct(
                    "train.py", "--slices_path", os.path.join(CT, "slices"), "--save_dir", CT_RUN, "--overwrite",
                    "--model", "test_resnet", "--no-pretrained", "--pooling", "avgmax",
                    "--aggregate", "attention", "--slices_per_volume", 6, "--batch-size", 36, "--loss-type", "bce",
                    "--learning-rate", 4e-3, "--dropout", 0.1, "--epochs", 20,
                    "--num_workers", 1, "--log_with", "none",
                ),
            ),
            (
                "evaluate on held-out patients",
                ct(
                    "evaluate.py", "--checkpoints", os.path.join(CT_RUN, "best"), "--slices_path",
                    os.path.join(CT, "slices"), "--output", os.path.join(CT, "evaluation"),
                ),
            ),
            (
                "predict, as for your own volumes",
                ct(
                    "predict.py", "--checkpoints", os.path.join(CT_RUN, "best"), "--output",
                    os.path.join(CT, "predictions"), "--input",
                    os.path.join(CT_DATA, "dataset", "valid_fixed", "valid_1", "valid_1_a"),
                ),
            ),
        ],
        [
            os.path.join(CT, "evaluation", "report.html"),
            os.path.join(CT, "predictions", "valid_1_a_1.png"),
        ],
    ),
    "ear_teacher": (
        [
            ("draw demo ears", ear("make_demo_data.py", "--output", EAR_DATA, "--images", 1000, "--overwrite")),
            ("check the model", ear("test_sam_model.py", *EAR_SAM)),
            (
                "train the teacher",
                ear(
                    "train.py", "--train_manifest", os.path.join(EAR_DATA, "train_teacher.npy"), "--val_manifest",
                    os.path.join(EAR_DATA, "val_teacher.npy"), "--save_dir", EAR_RUN, "--overwrite", *EAR_SAM +
                    ["--image_size", 64, "--latent_dim", 8, "--perceptual_weight", 0, "--no-augment", "--epochs", 15,
                     "--valid_interval", 5, "--batch_size", 16, "--lr", 2e-3, "--warmup_epochs", 1,
                     "--num_workers", 0, "--log_with", "none"]
                ),
            ),
            (
                "evaluate it on held-out ears",
                ear(
                    "evaluate.py", "--checkpoint", EAR_MODEL, "--manifest", os.path.join(EAR_DATA, "test_teacher.npy"),
                    "--output", os.path.join(EAR, "evaluation"), "--num_workers", 0,
                ),
            ),
            (
                "eigenears: in what do ears differ?",
                ear(
                    os.path.join("eigenears", "create_eigenears.py"), "--checkpoint", EAR_MODEL, "--output",
                    os.path.join(EAR, "eigenears"), "--num_workers", 0,
                ),
            ),
            (
                "train a detector on it",
                ear("train_detector.py", "--teacher", EAR_MODEL, "--save_dir", TAUGHT, *DETECTOR),
            ),
            (
                "train the same detector from scratch",
                ear("train_detector.py", "--save_dir", SCRATCH, "--latent_dim", 8, *EAR_SAM + DETECTOR),
            ),
            (
                "evaluate both on held-out pictures",
                ear(
                    "evaluate_detector.py", "--checkpoint", os.path.join(TAUGHT, "best"), "--compare",
                    os.path.join(SCRATCH, "best"), "--manifest", os.path.join(EAR_DATA, "test_detector.npy"),
                    "--output", os.path.join(EAR, "detection"),
                ),
            ),
        ],
        [
            os.path.join(EAR, "evaluation", "report.html"),
            os.path.join(EAR, "eigenears", "report.html"),
            os.path.join(EAR, "detection", "report.html"),
        ],
    ),
    "hyperspectral": (
        [
            (
                "draw demo retinas",
                retina("make_demo_data.py", "--output", RETINA_DATA, "--cases", 200, "--size", 96, "--overwrite"),
            ),
            ("measure the training cubes", retina("cubes.py", "stats", "--csv_file", RETINA_TABLE)),
            (
                "train",
                retina(
                    "train.py", "--csv_file", RETINA_TABLE, "--save_dir", RETINA_RUN, "--overwrite",
                    "--model", "mae_tiny", "--img_size", 96, "--patch_size", 16, 5, "--embed_dim", 128,
                    "--encoder_depth", 4, "--encoder_num_heads", 4, "--decoder", "cross", "--decoder_depth", 2,
                    "--batch_size", 8, "--epochs", 75, "--warmup_epochs", 7, "--lr", 2e-3, "--valid_interval", 25,
                    "--num_workers", 0, "--log_with", "none",
                ),
            ),
            (
                "evaluate on held-out cubes",
                retina(
                    "evaluate.py", "--checkpoint", RETINA_MODEL, "--csv_file", RETINA_TABLE, "--mask_seeds", 2,
                    "--batch_size", 8, "--output", os.path.join(RETINA, "evaluation"),
                ),
            ),
            (
                "features and reconstructions, as for your own cubes",
                retina(
                    "predict.py", "--checkpoint", RETINA_MODEL, "--output", os.path.join(RETINA, "features"),
                    "--reconstruct", "--input", os.path.join(RETINA_DATA, "cubes", "P0003_R.h5"),
                    os.path.join(RETINA_DATA, "cubes", "P0003_L.h5"),
                ),
            ),
            (
                "probe: do the features know the lesions?",
                retina(
                    "probe.py", "--checkpoint", RETINA_MODEL, "--csv_file", RETINA_TABLE, "--save_dir",
                    os.path.join(RETINA, "probe"), "--overwrite", "--num_workers", 1,
                ),
            ),
        ],
        [
            os.path.join(RETINA, "evaluation", "report.html"),
            os.path.join(RETINA, "features", "P0003_L_figures", "reconstructions.png"),
            os.path.join(RETINA, "probe", "report.html"),
        ],
    ),
    "implant": (
        [
            (
                "draw demo implants",
                implant("make_demo_data.py", "--output", IMPLANT_DATA, "--patients", 450, "--overwrite"),
            ),
            (
                "learn the companies",
                implant(
                    "train_classifier.py", "--target", "company", "--save_dir", IMPLANT_RUNS["company"], "--epochs", 6,
                    *IMPLANT_RECORDS + IMPLANT_VIT
                ),
            ),
            (
                "learn the models, from there on",
                implant(
                    "train_classifier.py", "--target", "model", "--save_dir", IMPLANT_RUNS["model"], "--epochs", 3,
                    "--visual_checkpoint", os.path.join(IMPLANT_RUNS["company"], "best"), *IMPLANT_RECORDS + IMPLANT_VIT
                ),
            ),
            (
                "learn sizes from pictures alone",
                implant(
                    "train.py", "--embeddings", "none", "--save_dir", IMPLANT_RUNS["visual"], "--epochs", 6,
                    "--visual_checkpoint", os.path.join(IMPLANT_RUNS["model"], "best"), "--unfreeze_schedule", 0, 0,
                    "--embedding_lr_multiplier", 1, "--warmup_epochs", 0.5, *IMPLANT_RECORDS
                ),
            ),
            (
                "learn sizes with both embeddings",
                implant(
                    "train.py", "--company_checkpoint", os.path.join(IMPLANT_RUNS["company"], "best"),
                    "--model_checkpoint", os.path.join(IMPLANT_RUNS["model"], "best"),
                    "--visual_checkpoint", os.path.join(IMPLANT_RUNS["visual"], "best"), "--cache_features",
                    "--unfreeze_schedule", 20, 20, "--epochs", 20, "--save_dir", IMPLANT_RUNS["dual"], *IMPLANT_RECORDS
                ),
            ),
            (
                "evaluate on held-out patients",
                implant(
                    "evaluate.py", "--checkpoints", os.path.join(IMPLANT_RUNS["dual"], "best"), "--compare",
                    IMPLANT_RUNS["visual"], "--test_json", os.path.join(IMPLANT_DATA, "test.json"),
                    "--calibration_json", os.path.join(IMPLANT_DATA, "val.json"), "--output",
                    os.path.join(IMPLANT, "evaluation"), "--num_workers", 0, "--bootstrap", 500,
                ),
            ),
            (
                "predict, as for your own pictures",
                implant(
                    "predict.py", "--checkpoints", os.path.join(IMPLANT_RUNS["dual"], "best"), "--input",
                    os.path.join(IMPLANT_DATA, "test.json"), "--output", os.path.join(IMPLANT, "predictions"),
                ),
            ),
        ],
        [
            os.path.join(IMPLANT, "evaluation", "report.html"),
            os.path.join(IMPLANT, "predictions", "overview.png"),
        ],
    ),
}  # fmt: skip


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
        return run(["-m", "pytest"] + arguments[1:])
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


def demonstrate(projects):
    start, pages = time.time(), []
    for project in projects:
        steps, results = PROJECTS[project]
        for number, (what, script) in enumerate(steps, 1):
            print("\n== %s %d/%d: %s\n   python %s" % (project, number, len(steps), what, " ".join(script)), flush=True)
            if run(script) != 0:
                stop("%s: this step failed; what it said stands above" % project)
        pages += results
    print("\nDone in %d min %02d s. Open:" % divmod(time.time() - start, 60))
    for page in pages:
        print("   " + os.path.join(ROOT, page))
    return 0


def run(arguments):
    """Runs Python of the environment from the repository's root."""
    return subprocess.call([PYTHON] + arguments, cwd=ROOT)


def stop(message):
    sys.stdout.flush()
    sys.stderr.write("error: %s\n" % message)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
