"""From a tree of volumes to a store of slices: resumed, interrupted, killed, spoiled. The chests are synthetic."""

import csv
import json
import os
import shutil
import signal
import time

import h5py
import nibabel as nib
import numpy as np
import pytest

from conftest import load_script
from core.errors import UserError
from ct import extraction
from ct import store as slice_store
from ct.labels import LABELS
from ct.store import read_manifest, read_settings, read_slices, write_manifest, write_slices
from ct.volumes import WINDOWS, load_volume, slice_stack
from launch import Launched, run

SCRIPT = "ct_multilabel/extract_slices.py"
AFFINE = np.diag([-6.0, -5.0, 8.0, 1.0])


def chest(seed: int) -> np.ndarray:
    """HU int16 (X, Y, Z) of an ellipse of tissue with two lungs and noise, stored as in CT-RATE."""
    x, y, z = np.meshgrid(*((np.arange(n) - n / 2) * s for n, s in zip((72, 64, 36), (6, 5, 8), strict=True)))
    x, y, z = (axis.transpose(1, 0, 2) for axis in (x, y, z))
    hu = np.where((y / 110) ** 2 + (x / 170) ** 2 < 1, 40.0, -1000.0)
    for side in (-80, 80):
        hu[((x - side) / 55) ** 2 + (y / 75) ** 2 + (z / 100) ** 2 < 1] = -850
    return (hu + np.random.default_rng(seed).normal(0, 15, hu.shape)).clip(-1024, 3071).astype(np.int16)


class Tree:
    """A CT-RATE tree of small volumes, and the store beside it."""

    def __init__(self, root):
        self.root, self.store, self.names = root / "CT-RATE", root / "slices", []

    def add(self, name: str, hu=None) -> None:
        file, split = self.file(name), name.split("_")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(chest(len(self.names)) if hu is None else hu, AFFINE), file)
        self.names.append(name)
        table = self.root / f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with open(table, "w", newline="") as out:
            rows = [[f"{n}.nii.gz", *self.labels(n)] for n in self.names if n.startswith(split)]
            csv.writer(out).writerows([["VolumeName", *LABELS], *rows])

    def labels(self, name: str) -> list[int]:
        return [(len(name) + i + int(name.split("_")[1])) % 3 - 1 for i in range(18)]

    def file(self, name: str):
        split, number, scan, _ = name.split("_")
        return self.root / f"dataset/{split}_fixed/{split}_{number}/{split}_{number}_{scan}/{name}.nii.gz"

    def stored(self, name: str):
        return self.store / name.split("_")[0] / f"{name}.h5"

    def arguments(self, *more) -> list[str]:
        tree = ("--dataset_path", self.root, "--output", self.store)
        return [str(word) for word in (*tree, "--slices", 6, "--size", 48, "--workers", 2, *more)]

    def extract(self, *more) -> None:
        load_script(SCRIPT).main(self.arguments(*more))

    def report(self) -> dict:
        return json.loads((self.store / "data_report.json").read_text())

    def stamps(self) -> dict:
        return {file.name: file.stat().st_mtime_ns for file in self.store.rglob("*.h5")}


@pytest.fixture
def tree(tmp_path) -> Tree:
    made = Tree(tmp_path)
    for name in ("train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"):
        made.add(name)
    return made


def test_a_tree_becomes_a_store(tree, capsys):
    tree.extract()
    volumes = read_manifest(tree.store)[1]
    assert [v.name for v in volumes] == ["train_1_a_1", "train_1_a_2", "train_2_a_1", "valid_1_a_1"]
    assert [(v.patient, v.scan, v.split) for v in volumes[1:3]] == [
        ("train_1", "train_1_a", "train"), ("train_2", "train_2_a", "train"),
    ]  # fmt: skip
    assert read_settings(tree.store) == {"slices": 6, "size": 48, "field_mm": 360.0, "channels": "windows"}
    assert "4 volumes extracted, 0 kept from before, 0 skipped; 4 with 18 labels in" in capsys.readouterr().out
    for stored in volumes:
        assert stored.labels.dtype == np.int8
        assert list(stored.labels) == tree.labels(stored.name)
        volume = load_volume(tree.file(stored.name))
        pixels, positions = slice_stack(volume, 6, 48)
        assert np.array_equal(read_slices(stored.file), pixels)
        assert stored.slices == len(pixels) == 6
        with h5py.File(stored.file) as file:
            assert file["slices"].chunks is None  # contiguous, not compressed
            about = dict(file.attrs)
        assert about["source"] == f"dataset/{tree.file(stored.name).relative_to(tree.root / 'dataset').as_posix()}"
        assert (about["volume"], about["patient"], about["split"]) == (stored.name, stored.patient, stored.split)
        assert (about["orientation"], about["hu_source"], about["channels"]) == ("LPS", "header", "windows")
        assert json.loads(about["windows"]) == {name: list(limits) for name, limits in WINDOWS.items()}
        assert about["spacing_zyx_mm"] == pytest.approx([8, 5, 6])
        assert about["positions_mm"] == pytest.approx(positions)
        assert about["lung_ml"] == pytest.approx(volume.chest.lung_ml)
        assert json.loads(about["warnings"]) == []


def test_a_second_run_writes_nothing_and_a_changed_source_is_done_anew(tree, capsys):
    tree.extract()
    before = tree.stamps()
    tree.extract()
    assert tree.stamps() == before
    assert "0 volumes extracted, 4 kept from before" in capsys.readouterr().out
    tree.add("valid_2_a_1")
    nib.save(nib.Nifti1Image(chest(99), AFFINE), tree.file("train_1_a_2"))
    tree.extract()
    after = tree.stamps()
    assert {name for name in after if after[name] != before.get(name)} == {"train_1_a_2.h5", "valid_2_a_1.h5"}
    expected, _ = slice_stack(load_volume(tree.file("train_1_a_2")), 6, 48)
    assert np.array_equal(read_slices(tree.stored("train_1_a_2")), expected)
    assert len(read_manifest(tree.store)[1]) == 5


def test_the_manifest_keeps_earlier_runs_and_forgets_what_broke(tree):
    """Sources may be deleted once they are done; a source that changed for the worse takes its slices along."""
    tree.extract("--splits", "valid")
    assert [v.name for v in read_manifest(tree.store)[1]] == ["valid_1_a_1"]
    tree.extract("--splits", "train")
    assert len(read_manifest(tree.store)[1]) == 4
    tree.file("train_1_a_1").unlink()
    tree.file("train_2_a_1").write_bytes(tree.file("train_2_a_1").read_bytes()[:5000])
    tree.extract()
    assert [v.name for v in read_manifest(tree.store)[1]] == ["train_1_a_1", "train_1_a_2", "valid_1_a_1"]
    assert not tree.stored("train_2_a_1").exists()
    assert tree.report()["cases"] == {"train": 2, "valid": 1}


def test_bad_volumes_are_listed_and_skipped(tree, capsys):
    hu = chest(5)
    tree.add("train_3_a_1", np.zeros_like(hu))
    tree.add("train_4_a_1", hu - 1024)
    tree.add("train_5_a_1", np.where(hu < -600, 40, hu).astype(np.int16))
    tree.add("train_6_a_1", hu[..., :2])
    lungs = (hu > -920) & (hu < -700)
    tree.add("train_7_a_1", np.where(lungs, 40, np.where(hu < -980, -1040, hu)).astype(np.int16))
    tree.file("train_1_a_1").write_bytes(tree.file("train_1_a_1").read_bytes()[:-2000])
    tree.extract()
    problems = {(p["where"].split("/")[-1].split(".")[0], p["reason"], p["action"]) for p in tree.report()["problems"]}
    assert problems == {
        ("train_1_a_1", "cut off", "volume skipped"),
        ("train_3_a_1", "empty", "volume skipped"),
        ("train_4_a_1", "rescaled twice", "volume skipped"),
        ("train_5_a_1", "not HU", "volume skipped"),
        ("train_6_a_1", "2 slices along the body axis; a chest CT has 20 or more", "volume skipped"),
        ("train_7_a_1", "values outside -1024…3071 HU, clipped", "kept"),
        ("train_7_a_1", "hardly any lung", "kept"),
    }
    assert "4 volumes extracted, 0 kept from before, 5 skipped" in capsys.readouterr().out
    warnings = json.loads(slice_store.read_attributes(tree.stored("train_7_a_1"))["warnings"])
    tree.extract()  # what was kept still has its warnings
    assert {(p["reason"], p["action"]) for p in tree.report()["problems"]} >= {
        (warning.split(": ")[0], "kept") for warning in warnings
    }


def test_other_settings_need_another_store_or_overwrite(tree):
    tree.extract()
    with pytest.raises(UserError, match=r"other settings \(size 48 there, 32 now\): name another --output"):
        tree.extract("--size", 32)
    tree.extract("--size", 32, "--channels", "adjacent", "--overwrite", "--splits", "valid")
    assert [v.name for v in read_manifest(tree.store)[1]] == ["valid_1_a_1"]  # train is still of the old settings
    assert read_slices(tree.stored("valid_1_a_1")).shape == (6, 3, 32, 32)
    tree.extract("--size", 32, "--channels", "adjacent")
    assert len(read_manifest(tree.store)[1]) == 4
    assert read_slices(tree.stored("train_1_a_1")).shape == (6, 3, 32, 32)


def test_as_a_command(tree):
    done = run(SCRIPT, *tree.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 volumes extracted" in done.stdout
    for name in tree.names:
        tree.file(name).write_bytes(b"")
    done = run(SCRIPT, *tree.arguments())
    assert done.returncode == 2
    assert done.stderr.startswith("error: no volume could be used; ")
    assert "train_1_a_1.nii.gz: empty: no byte in it" in done.stderr
    assert done.stderr.count("\n") == 1
    with pytest.raises(UserError, match="no such folder"):
        tree.extract("--dataset_path", tree.root / "nowhere")
    with pytest.raises(UserError, match="out of range; use 50 to 1000"):
        tree.extract("--field_mm", 3)


def descendants(pid: int) -> list[int]:
    children = [int(p) for p in os.listdir("/proc") if p.isdigit() and parent(int(p)) == pid]
    return children + [deeper for child in children for deeper in descendants(child)]


def parent(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as state:
            return int(state.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def workers(pid: int) -> list[int]:
    found = []
    for child in descendants(pid):
        try:
            with open(f"/proc/{child}/cmdline") as line:
                found += [child] if "spawn_main" in line.read() else []
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def wait_for(condition, seconds: float = 60):
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return result


@pytest.fixture
def long_tree(tree) -> Tree:
    """40 volumes more."""
    for number in range(10, 50):
        tree.add(f"train_{number}_a_1", chest(0))
    return tree


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on(long_tree, how):
    started = Launched(SCRIPT, *long_tree.arguments())
    pid = started.processes[0].pid
    wait_for(lambda: len(long_tree.stamps()) >= 3)
    helpers = workers(pid)
    assert len(helpers) == 2
    os.kill(pid, how)
    result = started.wait()
    assert result.returncode == (130 if how == signal.SIGINT else -9)
    wait_for(lambda: not any(parent(helper) for helper in helpers))  # nobody is left behind
    finished = long_tree.stamps()
    assert 3 <= len(finished) < 44
    for file in long_tree.store.rglob("*.h5"):
        assert read_slices(file).shape == (6, 3, 48, 48)
    if how == signal.SIGINT:
        assert result.stderr == ""
        assert "the same command goes on" in result.stdout
        listed = {volume.file.name for volume in read_manifest(long_tree.store)[1]}
        assert listed <= finished.keys()
        assert len(listed) >= len(finished) - 2  # but for those that the workers had in hand
    done = run(SCRIPT, *long_tree.arguments())
    assert f"{44 - len(finished)} volumes extracted, {len(finished)} kept from before, 0 skipped" in done.stdout
    assert finished.items() <= long_tree.stamps().items()
    assert not list(long_tree.store.rglob("*.unfinished"))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_a_worker_that_is_killed_once_costs_nothing(long_tree):
    started = Launched(SCRIPT, *long_tree.arguments())
    wait_for(lambda: len(long_tree.stamps()) >= 3)
    os.kill(workers(started.processes[0].pid)[0], signal.SIGKILL)
    result = started.wait()
    assert (result.returncode, result.stderr) == (0, "")
    assert "0 skipped; 44 with 18 labels in" in result.stdout


def test_a_volume_that_kills_its_worker_is_reported(tree, monkeypatch):
    """Three of four volumes are as they should be; one ends every process that reads it."""
    script = load_script(SCRIPT)
    monkeypatch.setattr(script, "extract", die_of_one)
    script.main(tree.arguments())
    assert [v.name for v in read_manifest(tree.store)[1]] == ["train_1_a_2", "train_2_a_1", "valid_1_a_1"]
    assert [(p["reason"], p["detail"]) for p in tree.report()["problems"]] == [("process died", "out of memory?")]


def die_of_one(path, *more):
    if path.name == "train_1_a_1.nii.gz":
        os._exit(9)
    return extraction.extract(path, *more)


# --------------------------------------------------------------------------------------------------------------- store


def test_slices_are_read_in_any_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 10), dtype=np.uint8)
    write_slices(tmp_path / "deep" / "a.h5", pixels, {"volume": "a"})
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["a.h5"]
    for which in ([4], [7, 0, 3, 3], np.array([8, 1]), []):
        assert np.array_equal(read_slices(tmp_path / "deep" / "a.h5", which), pixels[list(which)])
    assert np.array_equal(read_slices(tmp_path / "deep" / "a.h5"), pixels)


def test_damaged_and_missing_slices_are_one_line(tmp_path):
    file = tmp_path / "a.h5"
    with pytest.raises(UserError, match=r"a\.h5: no such file"):
        read_slices(file)
    write_slices(file, np.zeros((4, 3, 64, 64), np.uint8), {})
    content = file.read_bytes()
    for spoiled in (content[: len(content) // 2], content[:10], b"", b"text" * 100):
        file.write_bytes(spoiled)
        with pytest.raises(UserError, match=r"a\.h5: damaged \(") as caught:
            read_slices(file, [1])
        assert "\n" not in str(caught.value)
    with h5py.File(file, "w") as other:
        other["something"] = 1
    with pytest.raises(UserError, match=r"a\.h5: damaged"):
        read_slices(file)


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    write_slices(tmp_path / "a.h5", np.zeros((1, 3, 4, 4), np.uint8), {})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_slices(tmp_path / "a.h5", np.ones((1, 3, 4, 4), np.uint8), {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]
    assert read_slices(tmp_path / "a.h5").max() == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("Cardiomegaly", "", r"line 3: Cardiomegaly is ''; write 0, 1 or -1"),
        ("Lung nodule", "2", r"line 3: Lung nodule is '2'"),
        ("split", "test", r"line 3: split is 'test'; write train or valid"),
        ("slices", "0", r"line 3: slices is '0'"),
        ("patient", "", r"line 3: patient is empty"),
    ],
)
def test_a_bad_line_of_the_manifest_is_named(tmp_path, column, value, message):
    labels = np.zeros(18, np.int8)
    stored = [
        slice_store.StoredVolume(tmp_path / f"train/{name}.h5", name, "p", "s", "train", 4, labels) for name in "ab"
    ]
    write_manifest(tmp_path, LABELS, stored)
    assert [v.file for v in read_manifest(tmp_path)[1]] == [v.file for v in stored]
    manifest = tmp_path / "manifest.csv"
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    rows[1][column] = value
    with open(manifest, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)


def test_a_store_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no store of slices: it has no settings\.json"):
        read_settings(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.csv: no such file"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,volume\na,b\n")
    with pytest.raises(UserError, match="has no column patient, scan, split"):
        read_manifest(tmp_path)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match="holds no settings"):
        read_settings(tmp_path)
    write_manifest(tmp_path, LABELS, [])
    with pytest.raises(UserError, match="lists no volume"):
        read_manifest(tmp_path)


def test_slices_of_a_store_can_be_moved(tree, tmp_path):
    tree.extract("--splits", "valid")
    shutil.move(tree.store, tmp_path / "elsewhere")
    _, (volume,) = read_manifest(tmp_path / "elsewhere")
    assert read_slices(volume.file).shape == (6, 3, 48, 48)
