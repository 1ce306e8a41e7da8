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

TRIAL = "--no-pretrained --image_size 32 --epochs 1 --num_workers 0"  # of tune.py
ELSEWHERE = "quickstart.py", "download_ct_rate.py", "--tuning-job-name"


def commands(project):
    """Lists of words, from the script on, of the README's commands that are to run."""
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / project / "README.md").read_text("utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if any(word.endswith(".py") for word in words) and not any(name in line for name in ELSEWHERE):
                yield words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]


def smaller(words, flags):
    script, *arguments = words
    more = flags.get(script.partition("/")[2], "")
    more = (more if isinstance(more, str) else " ".join(more)).split()
    if "--" in arguments:  # of tune.py: what follows goes to the trials
        cut = arguments.index("--")
        return [script, *arguments[:cut], *more, *arguments[cut:], *TRIAL.split()]
    return [script, *arguments, *more]


def furnish(files, data, folder):
    """Puts what the README's commands name into `folder`: name there -> the first of the demo data that fits a
    pattern, as a JPEG where the name wants one of another kind."""
    for name, pattern in files.items():
        source, target = data if pattern == "." else sorted(data.glob(pattern))[0], folder / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        elif target.suffix == ".jpg" != source.suffix:
            with Image.open(source) as picture:
                picture.convert("RGB").save(target)
        else:
            shutil.copy(source, target)


def test_the_readme_runs_as_written(small, tmp_path):
    readme, done = small.tests["readme"], 0
    furnish(readme["files"], small.data, tmp_path)
    for words in commands(small.project):
        script, *arguments = smaller(words, readme["smaller"])
        result = run(script, *arguments, cwd=tmp_path)
        assert result.returncode == 0, (words, result.stderr)
        done += 1
    assert done >= 4
