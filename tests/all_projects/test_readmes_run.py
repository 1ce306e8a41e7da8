"""The commands of each README, one after the other as they stand there, in a folder that holds what they name.

Flags that make models and training small are appended; where a flag stands there already, the last one counts. Left out
are commands that fetch from a hub or ask AWS; `accelerate launch` itself is tried in test_launch_matrix.py.
"""

import re
import shlex
import shutil

from PIL import Image

from conftest import ROOT
from launch import run

QUICK = "--epochs 1 --num_workers 0 --log_with none --overwrite"
VAE = "--sam_config tiny --sam_image_size 128 --image_size 32 --latent_dim 8"
MAE = "--patch_size 10 5 --embed_dim 32 --encoder_depth 1 --encoder_num_heads 2 --decoder_embed_dim 32"
VIT = "--model_size tiny --no-pretrained --image_size 32 --embedding_dim 16 --batch_size 4"
HRNET = "--backbone hrnet_w18_small --no-pretrained --sigma 1.5"
SMALLER = {
    "cephalometric/train.py": f"{HRNET} --image_size 64 64 --heatmap_size 32 --expansion none --batch_size 4 {QUICK}",
    "cephalometric/train_refiner.py": f"{HRNET} --crop_size 64 --heatmap_size 16 --batch_size 2 --crops_per_image 2 "
    + QUICK,
    "cephalometric/evaluate.py": "--bootstrap 20",
    "ct_multilabel/extract_slices.py": "--slices 4 --size 32",
    "ct_multilabel/train.py": "--no-pretrained --batch_size 4 --slices_per_volume 2 --tune_fraction 0.5 " + QUICK,
    "ct_multilabel/evaluate.py": "--bootstrap 20",
    "ear_teacher/test_sam_model.py": VAE,
    "ear_teacher/train.py": f"{VAE} --perceptual_weight 0 --batch_size 4 --nb_to_plot 1 {QUICK}",
    "ear_teacher/evaluate.py": "--num_workers 0 --bootstrap 20 --nb_to_plot 1",
    "ear_teacher/eigenears/create_eigenears.py": "--num_workers 0 --components 1 --steps 3 --samples 1",
    "ear_teacher/predict.py": "--num_workers 0",
    "ear_teacher/train_detector.py": "--image_size 32 --batch_size 2 --windows 1 " + QUICK,
    "ear_teacher/evaluate_detector.py": "--bootstrap 20 --nb_to_plot 1",
    "hyperspectral/train.py": f"--img_size 40 {MAE} --decoder_depth 1 --decoder_num_heads 2 --batch_size 4 {QUICK}",
    "hyperspectral/evaluate.py": "--bootstrap 20 --mask_seeds 1 --nb_to_plot 1",
    "hyperspectral/probe.py": "--bootstrap 20 " + QUICK,
    "implant/train_classifier.py": f"{VIT} {QUICK}",
    "implant/train.py": f"{VIT} {QUICK}",
    "implant/evaluate.py": "--bootstrap 20 --num_workers 0",
    "implant/tune.py": "--trials 2 --parallel 1 --space model_size=tiny batch_size=4 embedding_dim=16",
}
TRIAL = "--no-pretrained --image_size 32 --epochs 1 --num_workers 0"  # of tune.py
ELSEWHERE = "quickstart.py", "download_ct_rate.py", "--tuning-job-name"


def commands(project):
    """Lists of words, from the script on, of the README's commands that are to run."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / project / "README.md").read_text("utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if any(word.endswith(".py") for word in words) and not any(name in line for name in ELSEWHERE):
                yield words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]


def smaller(words):
    script, *arguments = words
    more = SMALLER.get(script, "").split()
    if "--" in arguments:  # of tune.py: what follows goes to the trials
        cut = arguments.index("--")
        return [script, *arguments[:cut], *more, *arguments[cut:], *TRIAL.split()]
    return [script, *arguments, *more]


def furnish(project, data, folder):
    """Puts what the README's commands name into `folder`."""

    def copy(source, name):
        (folder / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (data / source).is_dir() else shutil.copy)(data / source, folder / name)

    if project == "cephalometric":
        copy("Aariz", "Aariz")
        shutil.copy(next((folder / "Aariz" / "test" / "Cephalograms").iterdir()), folder / "PATIENT.png")
    elif project == "ct_multilabel":
        copy("CT-RATE", "CT-RATE")
        shutil.copy(next((folder / "CT-RATE").rglob("valid_*.nii.gz")), folder / "SCAN.nii.gz")
    elif project == "ear_teacher":
        copy(".", "DATA")
        copy(".", "data/preprocessed")
        copy("images", "PICTURES")
        with Image.open(next((folder / "PICTURES").iterdir())) as picture:
            picture.convert("RGB").save(folder / "QUERY.jpg")
    elif project == "hyperspectral":
        for name in ("cubes", "masks", "rgb"):
            copy(name, name)
        copy("dataset.csv", "DATA.csv")
        (folder / "CUBES").symlink_to("cubes")
    else:
        for name in ("images", "train.json", "val.json", "test.json"):
            copy(name, name)
        (folder / "CROPS").symlink_to("images")


def test_the_readme_runs_as_written(small, tmp_path):
    furnish(small.project, small.data, tmp_path)
    done = 0
    for words in commands(small.project):
        script, *arguments = smaller(words)
        result = run(script, *arguments, cwd=tmp_path)
        assert result.returncode == 0, (words, result.stderr)
        done += 1
    assert done >= 4
