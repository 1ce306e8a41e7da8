"""Every project's training, killed wherever it hurts, stopped, without room on the disk, with spoiled states: resumed,
it ends as the uninterrupted one, bit for bit. The data are synthetic."""

import filecmp
import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from files import logged, read_json
from launch import Launched, run

KILLING = ROOT / "tests" / "killing.py"


def command(small, folder, *more, struck=()):
    """What to launch: train.py, `struck` by a blow at a place for the n-th time (see killing.py)."""
    script, *arguments = small.training(folder, *more)
    return [KILLING, *struck, ROOT / script, *arguments] if struck else [script, *arguments]


def resume(small, folder, struck=()):
    return run(*command(small, folder, "--resume", struck=struck))


def optimizer(folder):
    return torch.load(folder / "last" / "optimizer.bin", weights_only=True)


def assert_same_run(folder, whole):
    """The same weights, the same optimizer, the same best models and the same rows, to the last bit."""
    best = sorted(path.name for path in whole.glob("best*"))
    assert sorted(path.name for path in folder.glob("best*")) == best
    for name in ("last", *best):
        files = [run / name / "model.safetensors" for run in (folder, whole)]
        assert filecmp.cmp(*files, shallow=False), name
    assert all(read_json(folder / name / "config.json") == read_json(whole / name / "config.json") for name in best)
    assert read_json(folder / "last" / "state.json") == read_json(whole / "last" / "state.json")
    ours, theirs = optimizer(folder), optimizer(whole)
    assert ours["param_groups"] == theirs["param_groups"]
    torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
    assert logged(folder) == logged(whole)
    assert [path.name for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".unfinished"] == []


def assert_ends_as(small, folder, whole):
    """Resumed to its end."""
    done = resume(small, folder)
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole)


def assert_one_line(done, *texts):
    """A user's mistake: one line that begins with "error: " and holds the texts, and exit code 2."""
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(text in line for text in texts), line


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory) -> Path:
    """A run that nothing interrupted. Not to be written to."""
    folder = tmp_path_factory.mktemp(f"whole_{small.project}")
    done = run(*command(small, folder))
    assert done.returncode == 0, done.stderr
    return folder


def seconds(whole) -> float:
    """That the epochs took."""
    return sum(json.loads(line)["seconds"] for line in (whole / "metrics.jsonl").read_text().splitlines())


def kills(whole) -> list[tuple[str, int]]:
    """Places, and how often a process comes to them before it dies there: through all three epochs, in this order."""
    batches = read_json(whole / "last" / "state.json")["batches_per_epoch"]
    best_epoch = read_json(whole / "best" / "config.json")["best"]["epoch"]
    between_the_renames_of_best = [("rename .best.writing", 1)]
    return [
        ("half args.json", 1),
        ("backward", 1),
        ("half a row", 1),
        ("half .best.writing", 1),
        ("rename .best.writing", 1),
        ("half .last.writing", 1),
        ("backward", batches + batches // 2 + 1),  # in the middle of the second epoch
        ("half metrics.jsonl", 1),  # when resuming
        ("validation", 1),
        *between_the_renames_of_best * (best_epoch == 2),
        ("state", 1),
        ("half state.json", 1),
        ("rename last", 1),
        ("rename .last.writing", 1),  # last/ is away already
        ("backward", 2 * batches),  # the last batch of the third epoch
        *between_the_renames_of_best * (best_epoch == 3),
        ("remove previous", 1),
        ("half checksums.json", 1),
        ("finish", 1),
    ]


def test_killed_again_and_again(small, whole, tmp_path):
    """At every place of the list, then at moments by the clock, the start included; each time it is resumed."""
    folder, killed = tmp_path / "run", 0
    for place, number in kills(whole):
        done = resume(small, folder, struck=(place, number, "SIGKILL"))
        assert done.returncode == -signal.SIGKILL, (place, number, done)
        killed += 1
    assert_ends_as(small, folder, whole)

    seed = random.randrange(2**32)
    print("seed of the moments:", seed)
    rng, folder = random.Random(seed), tmp_path / "by_the_clock"
    while killed < 21:
        launched = Launched(*command(small, folder, "--resume"))
        time.sleep(rng.uniform(0, seconds(whole)))
        launched.processes[0].kill()
        done = launched.wait()
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if done.returncode == 0:  # it was faster: again from the beginning
            assert_same_run(folder, whole)
            shutil.rmtree(folder)
        else:
            killed += 1
    assert_ends_as(small, folder, whole)


def test_stopped_by_sigterm_and_by_a_full_disk(small, whole, tmp_path):
    """In the first epoch, in the validation after it, and when its state is written."""
    last = tmp_path / "last"
    batches = read_json(whole / "last" / "state.json")["batches_per_epoch"]
    for place, number, batch in (("backward", 2, 2), ("validation", 1, batches)):
        stopped = resume(small, tmp_path, struck=(place, number, "SIGTERM"))
        assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
        assert f"SIGTERM: saved {last} at epoch 1, batch {batch}; go on with --resume" in stopped.stdout
    full = resume(small, tmp_path, struck=("state", 1, "full disk"))
    assert_one_line(full, f"cannot write {last}", "the one written before is untouched; make room, then --resume")
    assert read_json(last / "state.json")["batch"] == batches
    assert_ends_as(small, tmp_path, whole)


def flip_a_byte(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def cut_a_file(folder):
    (folder / "optimizer.bin").write_bytes((folder / "optimizer.bin").read_bytes()[:-5])


def lose_a_file(folder):
    (folder / "random_states_0.pkl").unlink()


def garble_the_checksums(folder):
    (folder / "checksums.json").write_bytes(b"\x00" * 100)


def test_a_spoiled_last_falls_back_to_the_state_before(small, whole, tmp_path):
    """Again and again, and even if it is killed when it writes the next."""
    folder = shutil.copytree(whole, tmp_path / "run")
    last, previous = folder / "last", folder / "previous"
    stop, kill = ("backward", 1, "SIGTERM"), ("half .last.writing", 1, "SIGKILL")
    for spoil, words, struck, code in (
        (flip_a_byte, "model.safetensors is damaged", stop, 143),
        (cut_a_file, "optimizer.bin is damaged", stop, 143),
        (lose_a_file, "random_states_0.pkl is missing", stop, 143),
        (garble_the_checksums, "checksums.json is unreadable", kill, -9),
    ):
        spoil(last)
        stopped = resume(small, folder, struck=struck)
        assert stopped.returncode == code, stopped.stderr
        assert f"{last} cannot be used: {words}" in stopped.stdout
        assert f"resumed from {previous}: epoch 3, batch 1" in stopped.stdout
    assert_ends_as(small, folder, whole)
    for state in (last, previous):
        flip_a_byte(state)
    assert_one_line(resume(small, folder), f"no training state in {folder} can be used", "--overwrite")
