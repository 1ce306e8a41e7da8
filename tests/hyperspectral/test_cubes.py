"""Cubes on the disk: the table, bad files of every kind, statistics of the training split, repacking."""

import csv
import json
import os
import threading
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from conftest import load_script
from core.errors import UserError, first_line
from core.processes import in_processes
from core.validation import DataReport
from files import write_cube
from hsi import statistics as statistics_module
from hsi.files import H5_KEY, BadCube, Cube, foreground, inspect, read_cube, read_cubes
from hsi.statistics import Statistics, compute_statistics, matching_statistics, statistics_file
from hsi.wavelengths import DEFAULT_WAVELENGTHS
from launch import run

BANDS, SIZE = 5, 16


def cube_values(seed, bands=BANDS, size=SIZE):
    """A bright disc with another level in every band, on a dark border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    disc = np.hypot(rows, columns) < 0.45 * size
    levels = rng.uniform(0.2, 0.8, (bands, 1, 1))
    return ((levels + rng.normal(0, 0.05, (bands, size, size))) * disc + 0.001 * rng.random(disc.shape)).astype("f4")


def write_csv(file, rows):
    with open(file, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


@pytest.fixture
def data(tmp_path):
    """Nine cubes of nine patients, six of them in train; returns the CSV."""
    rows = []
    for i in range(9):
        write_cube(tmp_path / "h5" / f"P{i:04d}_a.h5", cube_values(i))
        split = "train" if i < 6 else ("valid" if i < 7 else "test")
        rows.append({"ID": f"c{i}", "label": str(i % 2), "hs_file": f"h5/P{i:04d}_a.h5", "split": split})
    return write_csv(tmp_path / "data.csv", rows)


def table(tmp_path, **columns):
    """A CSV of cubes whose files exist, with these columns."""
    number = len(next(iter(columns.values())))
    names = columns.pop("name", [f"P{i:04d}_a.h5" for i in range(number)])
    for name in names:
        (tmp_path / name).touch()
    columns = {"ID": [f"c{i}" for i in range(number)], "hs_file": names} | columns
    return write_csv(tmp_path / "t.csv", [{name: columns[name][i] for name in columns} for i in range(number)])


# ------------------------------------------------------------------------------------------------ the table


def test_a_row_becomes_a_cube_with_paths_relative_to_the_csv(tmp_path, monkeypatch):
    (tmp_path / "x.png").touch()
    rows = table(tmp_path, label=["3", ""], rgb_file=["x.png", "gone.png"], mask_file=["", ""], split=["Train", "val"])
    monkeypatch.chdir(tmp_path.parent)
    report = DataReport()
    splits = read_cubes(rows.relative_to(tmp_path.parent), report)
    expected = Cube("c0", tmp_path / "P0000_a.h5", "3", "P0000", "train", tmp_path / "x.png", None)
    assert splits["train"] == [expected]
    assert splits["valid"] == [Cube("c1", tmp_path / "P0001_a.h5", "", "P0001", "valid")]
    assert [(p.reason, p.action) for p in report.problems] == [("rgb_file: no such file", "kept without it")]
    assert report.cases == {"train": 1, "valid": 1, "test": 0}


def test_patients_without_a_split_are_divided_by_their_names(tmp_path):
    names = [f"P{i // 2:04d}_{i % 2}.h5" for i in range(600)]
    splits = read_cubes(table(tmp_path, name=names, label=[""] * 600))
    patients = {split: {cube.patient for cube in part} for split, part in splits.items()}
    assert sum(map(len, splits.values())) == 600
    assert sum(map(len, patients.values())) == 300  # no patient stands in two
    assert 0.15 < len(patients["test"]) / 300 < 0.25
    assert 0.06 < len(patients["valid"]) / 300 < 0.16
    fewer = read_cubes(table(tmp_path, name=names[:100], label=[""] * 100))
    assert {cube.id for cube in fewer["test"]} <= {cube.id for cube in splits["test"]}


def test_the_csv_decides_patient_and_split_where_it_names_them(tmp_path):
    columns = {"patient": ["anna", "anna", "bea", ""], "split": ["testing", "", "validation", "training"]}
    splits = read_cubes(table(tmp_path, **columns))
    found = {cube.id: (cube.patient, split) for split, part in splits.items() for cube in part}
    assert found == {
        "c0": ("anna", "test"),
        "c1": ("anna", "test"),  # where its patient is
        "c2": ("bea", "valid"),
        "c3": ("P0003", "train"),
    }


def test_a_patient_in_two_splits_is_an_error(tmp_path):
    rows = table(tmp_path, patient=["anna", "anna"], split=["train", "test"])
    with pytest.raises(UserError, match=r"anna.*c0 in train.*c1 in test"):
        read_cubes(rows)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"ID": ["a", "b", "a"]}, r"line 4: ID a stands in line 2, too"),
        ({"ID": ["a", "", "c"]}, r"line 3: ID is empty"),
        ({"split": ["train", "train", "holdout"]}, r"line 4: split is 'holdout'; write train, valid, test"),
    ],
)
def test_a_table_that_cannot_be_meant_names_the_line(tmp_path, columns, text):
    with pytest.raises(UserError, match=text):
        read_cubes(table(tmp_path, **columns))


def test_a_missing_column_or_fraction_is_named(tmp_path):
    file = write_csv(tmp_path / "t.csv", [{"ID": "a", "file": "a.h5"}])
    with pytest.raises(UserError, match=r"t.csv has no column hs_file; it needs the columns ID and hs_file"):
        read_cubes(file)
    with pytest.raises(UserError, match=r"nope.csv: no such file"):
        read_cubes(tmp_path / "nope.csv")
    for fractions in ((0.5, 0.5), (-0.1, 0.2)):
        with pytest.raises(UserError, match="--valid_fraction"):
            read_cubes(table(tmp_path, label=["", ""]), None, *fractions)


def test_missing_files_and_files_named_twice_are_skipped_and_listed(tmp_path):
    rows = table(tmp_path, split=["train"] * 6)
    (tmp_path / "P0001_a.h5").unlink()
    (tmp_path / "P0002_a.h5").unlink()
    (tmp_path / "P0002_a.h5").mkdir()
    rows.write_text(rows.read_text().replace("P0003_a.h5", "./P0000_a.h5").replace("P0004_a.h5", ""))
    report = DataReport()
    splits = read_cubes(rows, report)
    assert [cube.id for cube in splits["train"]] == ["c0", "c5"]
    assert [(p.reason, p.where, p.action) for p in report.problems] == [
        ("no such file", f"{rows}, line 3, c1", "case skipped"),
        ("a folder, not a file", f"{rows}, line 4, c2", "case skipped"),
        ("the same file twice", f"{rows}, line 5, c3", "case skipped"),
        ("hs_file is empty", f"{rows}, line 6, c4", "case skipped"),
    ]


def test_a_table_without_any_file_is_an_error(tmp_path):
    file = write_csv(tmp_path / "t.csv", [{"ID": "a", "hs_file": "gone.h5"}])
    with pytest.raises(UserError, match=r"names no file that exists \(.*line 2, a: no such file\)"):
        read_cubes(file)


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f2", ">f4", "f8"])
def test_numbers_become_float32_unscaled(tmp_path, dtype):
    values = (100 * cube_values(0)).astype(dtype)
    cube = read_cube(write_cube(tmp_path / "a.h5", values))
    assert cube.dtype == np.float32
    assert cube.dtype.isnative
    np.testing.assert_array_equal(cube, values.astype("f4"))


def spoilt(values, what):
    values = values.copy()
    values[2, 3, 4] = what
    return values


BAD = {
    "wrong key": (lambda f: write_cube(f, cube_values(0), "/cube"), r"no data set .*: it holds /cube \(5, 16, 16\)"),
    "a group": (lambda f: write_cube(f, cube_values(0), f"{H5_KEY}/raw"), r"no data set .*: it holds /Cube/Images/raw"),
    "no data": (lambda f: h5py.File(f, "w").close(), r"no data set /Cube/Images: it holds none; .*--h5_key"),
    "2-D": (lambda f: write_cube(f, np.ones((4, 4))), r"no cube.*the shape \(4, 4\)"),
    "no rows": (lambda f: write_cube(f, np.ones((5, 0, 4))), r"no cube.*the shape \(5, 0, 4\)"),
    "text": (lambda f: write_cube(f, np.full((5, 4, 4), b"x")), r"no numbers: .*type"),
    "HWC": (lambda f: write_cube(f, cube_values(0).transpose(1, 2, 0)), r"bands last: .*\(16, 16, 5\).*bands first"),
    "bands": (lambda f: write_cube(f, cube_values(0, 6)), "other number of bands: 6, not 5; .*--wavelengths"),
    "NaN": (lambda f: write_cube(f, spoilt(cube_values(0), np.nan)), "NaN or infinite values: 1 of 1280"),
    "infinite": (lambda f: write_cube(f, spoilt(cube_values(0), -np.inf)), "NaN or infinite values: 1 of 1280"),
    "too large": (lambda f: write_cube(f, spoilt(cube_values(0).astype("f8"), 1e300)), "NaN or infinite values: 1 of"),
    "constant": (lambda f: write_cube(f, np.full((BANDS, 4, 4), 7)), "constant: every value is 7"),
    "empty": (lambda f: f.touch(), "no HDF5 file, or a damaged one: .*; copy it again"),
    "no HDF5": (lambda f: f.write_text("hello"), "no HDF5 file, or a damaged one"),
    "truncated": (
        lambda f: os.truncate(write_cube(f, cube_values(0)), 4000),
        "no HDF5 file, or a damaged one: .*truncated",
    ),
    "damaged chunk": (
        lambda f: damage(write_cube(f, cube_values(0), compression="gzip", chunks=(BANDS, SIZE, SIZE))),
        "no HDF5 file, or a damaged one",
    ),
    "folder": (lambda f: f.mkdir(), "no HDF5 file, or a damaged one"),
    "missing": (lambda f: None, "no such file"),
}
OF_VALUES = ("NaN", "infinite", "too large", "constant", "damaged chunk")  # not to be seen in the header


def damage(file):
    with h5py.File(file) as store:
        chunk = store[H5_KEY].id.get_chunk_info(0)
    with open(file, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(100))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_with_its_reason_in_one_line(tmp_path, kind):
    make, text = BAD[kind]
    file = tmp_path / "P0001.h5"
    make(file)
    with pytest.raises(BadCube, match=text) as caught:
        read_cube(file, H5_KEY, BANDS)
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value) == first_line(caught.value)


@pytest.mark.parametrize("kind", BAD)
def test_inspection_skips_what_the_header_shows(tmp_path, kind):
    make, _ = BAD[kind]
    make(tmp_path / "bad.h5")
    write_cube(tmp_path / "good.h5", cube_values(0))
    both = [Cube(name, tmp_path / f"{name}.h5", "", name, "train") for name in ("bad", "good")]
    report = DataReport()
    usable = inspect({"train": both, "valid": []}, H5_KEY, BANDS, None, report)
    skipped = [p for p in report.problems if p.action == "case skipped"]
    if kind in OF_VALUES:
        assert (usable["train"], skipped) == (both, [])
    else:
        assert usable["train"] == both[1:]
        assert len(skipped) == 1
        assert skipped[0].where == f"bad, {both[0].file}"
    assert report.cases == {"train": len(usable["train"]), "valid": 0}


def test_inspection_knows_size_and_slow_storage(tmp_path):
    write_cube(tmp_path / "plain.h5", cube_values(0))
    write_cube(tmp_path / "gzip.h5", cube_values(1), compression="gzip")
    write_cube(tmp_path / "small.h5", cube_values(2, size=8))
    three = [Cube(name, tmp_path / f"{name}.h5", "", name, "train") for name in ("plain", "gzip", "small")]
    report = DataReport()
    usable = inspect({"train": three}, H5_KEY, BANDS, (SIZE, SIZE), report)
    assert usable["train"] == three[:2]
    assert report.counts() == {("slow to read", "kept"): 1, ("other size", "case skipped"): 1}
    assert report.problems[0].detail.startswith("gzip; cubes.py repack")


def test_nothing_usable_ends_it_with_the_way_out(tmp_path):
    three = [Cube(f"c{i}", write_cube(tmp_path / f"c{i}.h5", cube_values(i)), "", str(i), "valid") for i in range(3)]
    text = r"no valid cube can be used, 3 of 3 for this: .*: 16x16 px, the model wants 500x500: --img_size 16"
    with pytest.raises(UserError, match=text):
        inspect({"valid": three}, H5_KEY, BANDS, (500, 500), DataReport())
    with pytest.raises(UserError, match=r"3 of 3 for this: .*other number of bands: 5, not 30"):
        inspect({"valid": three}, H5_KEY, 30, None, DataReport())


# ------------------------------------------------------------------------------------------------ statistics


def test_foreground_is_the_disc_whatever_the_units():
    rows, columns = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    disc = np.hypot(rows, columns) < 0.45 * SIZE
    for scale in (1, 4095):
        inside = foreground(cube_values(3) * scale)
        assert inside.dtype == bool
        np.testing.assert_array_equal(inside, disc)


def test_statistics_are_those_of_all_training_foreground(data):
    splits = read_cubes(data)
    statistics = compute_statistics(splits)
    values = [cube_values(i) for i in range(6)]
    pixels = np.concatenate([v[:, foreground(v)] for v in values], axis=1).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, pixels.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(statistics.std, pixels.std(axis=1), rtol=1e-6)
    assert (statistics.cubes, statistics.pixels, statistics.key) == (6, pixels.shape[1], H5_KEY)
    assert statistics.low == pytest.approx(min(np.percentile(v, 0.1) for v in values))
    assert statistics.high == pytest.approx(max(np.percentile(v, 99.9) for v in values))
    assert statistics.unusable == {}


def test_only_train_counts_but_all_are_read(data):
    before = compute_statistics(read_cubes(data))
    write_cube(data.parent / "h5" / "P0007_a.h5", 100 * cube_values(7))
    write_cube(data.parent / "h5" / "P0008_a.h5", spoilt(cube_values(8), np.nan))
    after = compute_statistics(read_cubes(data))
    assert (after.mean, after.std, after.low, after.high) == (before.mean, before.std, before.low, before.high)
    assert list(after.unusable) == ["c8"]
    assert after.unusable["c8"].startswith("NaN or infinite values: 1 of")


def test_several_processes_find_the_same(data):
    write_cube(data.parent / "h5" / "P0001_a.h5", spoilt(cube_values(1), np.nan))
    splits = read_cubes(data)
    assert compute_statistics(splits, workers=2) == compute_statistics(splits)


def test_ranks_share_the_cubes_and_find_the_same(data, monkeypatch):
    """Each cube is read by one of them; all digits are those of one process."""
    write_cube(data.parent / "h5" / "P0001_a.h5", spoilt(cube_values(1), np.nan))
    splits, read, shares, found = read_cubes(data), [], [None, None], {}
    alone, both, measured = compute_statistics(splits), threading.Barrier(2, timeout=60), statistics_module.measure

    def gather(mine):  # as that of accelerate.utils, between threads
        shares[int(threading.current_thread().name)] = mine[0]
        both.wait()
        return shares

    def rank(number):
        accelerator = SimpleNamespace(process_index=number, num_processes=2)
        found[number] = compute_statistics(splits, accelerator=accelerator)

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    monkeypatch.setattr(statistics_module, "measure", lambda file, key: read.append(file) or measured(file, key))
    ranks = [threading.Thread(target=rank, args=(number,), name=str(number)) for number in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert found == {0: alone, 1: alone}
    assert sorted(read) == sorted(cube.file for part in splits.values() for cube in part)


def test_large_offsets_keep_their_digits(tmp_path):
    """Counts of 1e6 with an SD of 1: the naive Σx² − (Σx)²/n in float32 gives nonsense."""
    rng = np.random.default_rng(0)
    values = [(1e6 + rng.integers(-2, 3, (2, SIZE, SIZE))).astype("f4") for _ in range(3)]
    train = [Cube(str(i), write_cube(tmp_path / f"{i}.h5", v), "", str(i), "train") for i, v in enumerate(values)]
    statistics = compute_statistics({"train": train})
    np.testing.assert_allclose(statistics.std, np.concatenate(values, 1).astype("f8").std(axis=(1, 2)), rtol=1e-6)


def test_cubes_of_other_bands_and_black_ones_are_unusable(data):
    write_cube(data.parent / "h5" / "P0000_a.h5", cube_values(0, 6))
    write_cube(data.parent / "h5" / "P0001_a.h5", np.minimum(0, cube_values(1) - 2))
    statistics = compute_statistics(read_cubes(data))
    assert statistics.cubes == 4
    assert statistics.unusable["c0"] == "other number of bands: 6, most have 5"
    assert statistics.unusable["c1"].startswith("no foreground: ")


def test_a_dead_band_and_an_empty_train_split_are_errors(data):
    for i in range(6):
        values = cube_values(i)
        values[3] = 0.3
        write_cube(data.parent / "h5" / f"P{i:04d}_a.h5", values)
    with pytest.raises(UserError, match=r"band 3 .*same value"):
        compute_statistics(read_cubes(data))
    for i in range(6):
        write_cube(data.parent / "h5" / f"P{i:04d}_a.h5", np.zeros((BANDS, 4, 4)))
    with pytest.raises(UserError, match=r"none of 6 train cubes.*P0000_a.h5: constant"):
        compute_statistics(read_cubes(data))


def test_statistics_survive_the_disk_exactly(data, tmp_path):
    statistics = compute_statistics(read_cubes(data))
    statistics.save(tmp_path / "deep" / "s.json")
    assert Statistics.load(tmp_path / "deep" / "s.json") == statistics
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["s.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"mean": [1], "std": [0]}', '{"mean": 3, "std": 4}', "\xff"])
def test_a_damaged_file_of_statistics_names_the_command(tmp_path, content):
    (tmp_path / "s.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"s.json holds no statistics .*cubes.py stats .*--output .*s.json"):
        Statistics.load(tmp_path / "s.json")
    with pytest.raises(UserError, match=r"gone.json: no such file; .*cubes.py stats"):
        Statistics.load(tmp_path / "gone.json")


def test_statistics_of_these_cubes_are_taken_and_others_refused(data, tmp_path):
    file = tmp_path / "s.json"
    splits = read_cubes(data)
    statistics = compute_statistics(splits)
    statistics.save(file)
    assert matching_statistics(file, splits) == statistics

    with pytest.raises(UserError, match=r"is of the data set /Cube/Images, not /x.*--h5_key /x"):
        matching_statistics(file, splits, "/x")
    without_one = splits | {"train": splits["train"][1:]}
    with pytest.raises(UserError, match=r"s.json is of other data: 1 of 8 cubes differ; .*cubes.py stats"):
        matching_statistics(file, without_one)
    data.write_text(data.read_text().replace("P0006_a.h5,valid", "P0006_a.h5,train"))  # was not in the mean
    with pytest.raises(UserError, match="1 of 9 cubes differ"):
        matching_statistics(file, read_cubes(data))
    write_cube(data.parent / "h5" / "P0000_a.h5", 2 * cube_values(0))  # as many bytes as before
    with pytest.raises(UserError, match="1 of 9 cubes differ"):
        matching_statistics(file, splits)


def test_an_unusable_cube_may_be_taken_out_afterwards(data, tmp_path):
    (data.parent / "h5" / "P0002_a.h5").write_text("damaged")
    splits = read_cubes(data)
    statistics = compute_statistics(splits)
    statistics.save(tmp_path / "s.json")
    usable = inspect(splits, H5_KEY, BANDS, None, DataReport())
    assert len(usable["train"]) == 5
    assert matching_statistics(tmp_path / "s.json", usable) == matching_statistics(tmp_path / "s.json", splits)


# ------------------------------------------------------------------------------------------------ command line

WAVELENGTHS = ("--wavelengths", "450,500,550,600,650")


def command(name, csv_file, *arguments):
    more = () if name == "repack" else WAVELENGTHS
    load_script("hyperspectral/cubes.py").main(
        [name, "--csv_file", str(csv_file), "--workers", "1", *more, *map(str, arguments)]
    )


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_check_lists_every_problem_and_writes_nothing(data, tmp_path, capsys):
    folder = data.parent / "h5"
    write_cube(folder / "P0001_a.h5", spoilt(cube_values(1), np.nan))
    write_cube(folder / "P0002_a.h5", cube_values(2), compression="gzip")
    os.truncate(folder / "P0003_a.h5", 4000)
    dead = cube_values(4)
    dead[1] = 0.3
    write_cube(folder / "P0004_a.h5", dead)
    write_cube(folder / "P0005_a.h5", cube_values(5) - 0.5)
    before = contents(data.parent)
    command("check", data)
    assert contents(data.parent) == before
    printed = capsys.readouterr().out
    assert "4 train, 1 valid, 2 test; 5 problems" in printed
    assert "5x16x16" in printed

    command("check", data, "--output", tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["cases"] == {"train": 4, "valid": 1, "test": 2}
    found = {(p["reason"], p["where"].rpartition("/")[2], p["action"]) for p in written["problems"]}
    assert found == {
        ("no HDF5 file, or a damaged one", "P0003_a.h5", "case skipped"),
        ("NaN or infinite values", "P0001_a.h5", "case skipped"),
        ("slow to read", "P0002_a.h5", "kept"),
        ("a band is constant", "P0004_a.h5", "kept"),
        ("values far below 0", "P0005_a.h5", "kept"),
    }
    assert "500 nm" in [p["detail"] for p in written["problems"]]


def test_stats_writes_beside_the_csv_and_the_script_needs_no_help(data):
    done = run(
        "hyperspectral/cubes.py", "stats", "--csv_file", data, "--workers", 2, *WAVELENGTHS, cwd=data.parent.parent
    )
    assert done.returncode == 0, done.stderr
    assert statistics_file(data) == data.parent / "data_stats.json"
    assert "6 train cubes" in done.stdout
    splits = read_cubes(data)
    assert matching_statistics(statistics_file(data), splits) == compute_statistics(splits)


def test_a_mistake_is_one_line(data):
    done = run("hyperspectral/cubes.py", "check", "--csv-file", data)  # 30 wavelengths for 5 bands
    assert done.returncode == 2
    assert done.stderr.startswith("error: no train cube can be used, 6 of 6 for this: ")
    assert done.stderr.count("\n") == 1


def test_repacked_cubes_are_equal_in_one_piece_and_found_by_the_new_csv(data, tmp_path):
    folder = data.parent
    for i in range(9):
        values = (1000 * cube_values(i)).astype("u2")
        write_cube(folder / "h5" / f"P{i:04d}_a.h5", values, compression="gzip", chunks=(1, 4, 4))
    (folder / "m.png").touch()
    rows = list(csv.DictReader(open(data, newline="")))
    rows = [{"site": "é"} | row | {"mask_file": "m.png" if i else "", "rgb_file": ""} for i, row in enumerate(rows)]
    write_csv(data, rows)
    before = contents(folder)
    output = tmp_path / "fast" / "copies"
    command("repack", data, "--output", output)
    assert {path: state for path, state in contents(folder).items() if path in before} == before

    new = list(csv.DictReader(open(output / "data.csv", newline="", encoding="utf-8")))
    assert [list(row) for row in new] == [list(row) for row in rows]
    assert [(row["ID"], row["site"], row["label"], row["split"]) for row in new] == [
        (row["ID"], row["site"], row["label"], row["split"]) for row in rows
    ]
    report = DataReport()
    old_splits, splits = read_cubes(data), read_cubes(output / "data.csv", report)
    known = "ID, label, hs_file, rgb_file, mask_file, patient, split"
    found = [(p.reason, p.where, p.action, p.detail) for p in report.problems]
    assert found == [("unknown column", str(output / "data.csv"), "not read", f"site; known are {known}")]
    for split, part in splits.items():
        for cube, old in zip(part, old_splits[split], strict=True):
            assert cube.file.is_relative_to(output)
            assert (cube.patient, cube.mask_file) == (old.patient, old.mask_file)
            np.testing.assert_array_equal(read_cube(cube.file), read_cube(old.file))
            with h5py.File(cube.file) as store:
                assert store[H5_KEY].chunks is None
                assert store[H5_KEY].dtype == np.uint16
    assert not list(output.rglob("*.unfinished"))

    command("repack", data, "--output", output, "--dtype", "float32", "--overwrite")
    with h5py.File(splits["train"][0].file) as store:
        assert store[H5_KEY].dtype == np.float32


def test_repacking_goes_on_where_it_was_stopped(data, tmp_path, capsys, monkeypatch):
    output = tmp_path / "fast"
    script = load_script("hyperspectral/cubes.py")
    copies, replaced = [], os.replace

    def stop_at_the_fifth(source, target):
        copies.append(target)
        if len(copies) == 5:
            raise KeyboardInterrupt
        replaced(source, target)

    monkeypatch.setattr(os, "replace", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        script.main(["repack", "--csv_file", str(data), "--workers", "1", "--output", str(output)])
    monkeypatch.setattr(os, "replace", replaced)
    assert not (output / "data.csv").exists()
    assert not list(output.rglob("*.unfinished"))

    command("repack", data, "--output", output)
    assert "6 cubes copied, 3 there already" in capsys.readouterr().out  # the first that was replaced marks the folder
    write_cube(data.parent / "h5" / "P0000_a.h5", 2 * cube_values(0))
    command("repack", data, "--output", output)
    assert "1 cubes copied, 8 there already" in capsys.readouterr().out
    np.testing.assert_array_equal(read_cube(output / "h5" / "P0000_a.h5"), 2 * cube_values(0))


def test_an_interrupted_change_of_type_is_finished(data, tmp_path):
    output = tmp_path / "fast"
    command("repack", data, "--output", output)
    old = (output / "h5" / "P0008_a.h5").read_bytes()
    command("repack", data, "--output", output, "--dtype", "float32", "--overwrite")
    (output / "h5" / "P0008_a.h5").write_bytes(old)  # as if it had not come so far
    command("repack", data, "--output", output, "--dtype", "float32")
    with h5py.File(output / "h5" / "P0008_a.h5") as store:
        assert store.attrs["dtype"] == "float32"


def test_the_default_wavelengths_are_the_projects_own():
    script = load_script("hyperspectral/cubes.py")
    assert script.parse_args(["check", "--csv_file", "x.csv"]).wavelengths == DEFAULT_WAVELENGTHS


def test_repacking_leaves_out_what_cannot_be_read(data, tmp_path):
    (data.parent / "h5" / "P0000_a.h5").write_text("no HDF5")
    (data.parent / "h5" / "P0001_a.h5").unlink()
    output = tmp_path / "fast"
    command("repack", data, "--output", output)
    report = DataReport()
    splits = read_cubes(output / "data.csv", report)
    assert [cube.id for cube in splits["train"]] == ["c2", "c3", "c4", "c5"]
    assert report.problems == []
    written = json.loads((output / "data_report.json").read_text())
    assert written["cases"] == {"train": 4, "valid": 1, "test": 2}
    assert [problem["reason"] for problem in written["problems"]] == ["no such file", "no HDF5 file, or a damaged one"]


def test_repacking_refuses_folders_that_are_not_its_own(data, tmp_path):
    before = contents(data.parent)
    with pytest.raises(UserError, match="holds the originals"):
        command("repack", data, "--output", data.parent, "--overwrite")
    other = tmp_path / "other"
    other.mkdir()
    (other / "data.csv").write_text("mine")
    with pytest.raises(UserError, match="files of another origin"):
        command("repack", data, "--output", other, "--overwrite")
    with pytest.raises(UserError, match="is a file"):
        command("repack", data, "--output", other / "data.csv")
    command("repack", data, "--output", tmp_path / "fast")
    with pytest.raises(UserError, match=r"other settings .*--overwrite"):
        command("repack", data, "--output", tmp_path / "fast", "--dtype", "float32")
    assert {path: state for path, state in contents(data.parent).items() if path in before} == before


def test_cubes_of_other_folders_keep_apart(data, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "h5" / "P0000_a.h5"
    write_cube(elsewhere, 3 * cube_values(0))
    inside = data.parent / "inside"
    inside.mkdir()
    table = inside / "d.csv"
    table.write_text(f"ID,hs_file,patient\na,{elsewhere},x\nb,../h5/P0000_a.h5,x\n")
    command("repack", table, "--output", tmp_path / "fast")
    splits = read_cubes(tmp_path / "fast" / "d.csv")
    found = {cube.id: read_cube(cube.file) for part in splits.values() for cube in part}
    np.testing.assert_array_equal(found["a"], 3 * cube_values(0))
    np.testing.assert_array_equal(found["b"], cube_values(0))
    assert all(cube.file.is_relative_to(tmp_path / "fast") for part in splits.values() for cube in part)


def test_a_worker_that_dies_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"a worker process died.*--workers"):
        list(in_processes(os._exit, [(1,), (1,)], 2))
