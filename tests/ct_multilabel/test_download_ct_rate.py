"""The downloader against a hub on loopback: what it selects, that it resumes, and what it says when it cannot.

The volumes are random bytes; nothing here comes from CT-RATE. Most tests run the script's `main` in this process, with
the library pointed at the stand-in; some run it as users do. (`launch.run` would not do: its processes have imported
huggingface_hub already, which reads HF_ENDPOINT at import.)
"""

import csv
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from conftest import ROOT, load_script
from core.errors import UserError
from core.validation import DataReport
from ct.labels import LABELS

hub_stand_in = load_script("tests/ct_multilabel/hub_stand_in.py")
HubStandIn, TOKEN = hub_stand_in.HubStandIn, hub_stand_in.TOKEN

ENDPOINT = constants.ENDPOINT  # whatever the environment says
SCRIPT = "ct_multilabel/download_ct_rate.py"
# Two patients have two scans or reconstructions; train_3 has two of one scan, of which the first shows no chest.
TRAIN = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_3_a_1", "train_3_a_2", "train_4_a_1"]
TRAIN += ["train_5_a_1", "train_5_a_2"]
VALID = ["valid_1_a_1", "valid_1_a_2", "valid_2_a_1"]
NO_CHEST = {"train_3_a_1", "valid_2_a_1"}


def volume(name: str, folder: str = "_fixed") -> str:
    """The path of a volume in the repository, spelled out here: CT-RATE's own form."""
    patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
    return f"dataset/{name.split('_')[0]}{folder}/{patient}/{scan}/{name}.nii.gz"


def table(header: list[str], rows: list[list]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def repository() -> dict[str, bytes]:
    rng, files = random.Random(0), {}
    for split, names, metadata in (("train", TRAIN, "train"), ("valid", VALID, "validation")):
        rows = [[f"{name}.nii.gz"] for name in names]
        files[f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv"] = table(
            ["VolumeName", *LABELS], [row + [0] * len(LABELS) for row in rows]
        )
        files[f"dataset/metadata/{metadata}_metadata.csv"] = table(["VolumeName", "RescaleSlope"], rows)
        no_chest = "".join(f"{name}.nii.gz\n" for name in names if name in NO_CHEST)
        files[f"dataset/metadata/no_chest_{split}.txt"] = no_chest.encode()
        for name in names:
            files[volume(name)] = rng.randbytes(rng.randint(20_000, 40_000))
            files[volume(name, "")] = rng.randbytes(1000)
    return files


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubStandIn(repository()) as hub:
        template = hub.url + constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(ENDPOINT)
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def downloader():
    return load_script(SCRIPT)


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "CT-RATE"


@pytest.fixture
def download(downloader, hub, output):
    """Runs the script's `main` with these arguments."""
    return lambda *arguments: downloader.main(["--output", str(output), *map(str, arguments)])


def volumes(output: Path) -> set[str]:
    return {file.name.removesuffix(".nii.gz") for file in output.rglob("*.nii.gz")}


def report(output: Path) -> dict:
    return json.loads((output / "download_report.json").read_text())


def reasons(output: Path) -> dict[str, int]:
    return {entry["reason"]: entry["count"] for entry in report(output)["counts"]}


def process(hub_url: str, output: Path, *arguments, **environment) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    inherited |= {"HF_ENDPOINT": hub_url, "HF_HOME": str(output.parent / "hf_home"), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(ROOT / SCRIPT), "--output", str(output), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=output.parent, env=inherited | environment, **pipes)


# ----------------------------------------------------------------------------------------------------------- selection


def test_everything_but_no_chest_lands_where_ct_rate_keeps_it(download, hub, output, capsys):
    download()
    assert volumes(output) == {*TRAIN, *VALID} - NO_CHEST
    for file in (file for file in (output / "dataset").rglob("*") if file.is_file()):
        assert file.read_bytes() == hub.files[file.relative_to(output).as_posix()]
    assert report(output)["cases"] == {"train": 8, "valid": 2}
    assert {p["where"] for p in report(output)["problems"]} == NO_CHEST
    printed = capsys.readouterr().out
    assert printed.count("non-commercial") == 1
    size = sum(len(hub.files[volume(name)]) for name in {*TRAIN, *VALID} - NO_CHEST)
    assert f"10 volumes of 6 patients, {size / 1e9:.2f} GB" in printed


def test_what_was_downloaded_is_what_the_reader_finds(download, output):
    from ct import ct_rate

    download()
    report = DataReport()
    _, found = ct_rate.find_volumes(output, report)
    assert {volume.name for volume in found} == {*TRAIN, *VALID} - NO_CHEST
    assert not report.problems


def test_one_split(download, hub, output):
    download("--splits", "valid")
    assert volumes(output) == {"valid_1_a_1", "valid_1_a_2"}
    assert not any("train" in path for _, path, _ in hub.requests)


def test_version_1(download, output):
    download("--splits", "valid", "--version", "v1")
    assert {file.relative_to(output).as_posix() for file in output.rglob("*.nii.gz")} == {
        volume("valid_1_a_1", ""),
        volume("valid_1_a_2", ""),
    }


def test_a_larger_number_of_patients_contains_the_smaller_one(downloader):
    names = [f"train_{patient}_a_{n}" for patient in range(50) for n in (1, 2)]
    chosen = [downloader.select(names, max_patients=number, seed=3) for number in range(1, 51)]
    for number, (fewer, more) in enumerate(pairwise(chosen), 1):
        assert len(fewer) == 2 * number  # all of a patient
        assert more[: len(fewer)] == fewer
    assert sorted(chosen[-1]) == sorted(names)
    assert chosen[9] != downloader.select(names, max_patients=10, seed=4)
    # Neither the order of the table nor volumes that leave it move another patient.
    assert downloader.select(names[::-1], max_patients=10, seed=3) == chosen[9]
    without = [name for name in names if name not in chosen[9][:2]]
    assert downloader.select(without, max_patients=9, seed=3) == chosen[9][2:]


def test_max_patients_counts_in_each_split(download, output):
    download("--max_patients", 1)
    patients = {name.rsplit("_", 2)[0] for name in volumes(output)}
    assert {patient.split("_")[0] for patient in patients} == {"train", "valid"}
    assert len(patients) == 2
    assert volumes(output) == {n for n in {*TRAIN, *VALID} - NO_CHEST if n.rsplit("_", 2)[0] in patients}


def test_max_volumes_takes_whole_patients(downloader):
    names = [name for name in TRAIN if name not in NO_CHEST]
    whole = downloader.select(names)
    taken = [downloader.select(names, max_volumes=number) for number in range(3, len(names) + 1)]
    for number, chosen in enumerate(taken, 3):
        assert len(chosen) <= number
        assert chosen == whole[: len(chosen)]
        left_out = {name.rsplit("_", 2)[0] for name in set(names) - set(chosen)}
        assert not left_out & {name.rsplit("_", 2)[0] for name in chosen}
    assert taken[-1] == whole
    with pytest.raises(UserError, match=r"--max_volumes 1: train_1, the first, alone has 2 volumes"):
        downloader.select(["train_1_a_1", "train_1_a_2"], max_volumes=1)


def test_first_reconstruction_of_each_scan(downloader):
    names = ["train_1_a_10", "train_1_a_9", "train_1_b_2", "train_1_b_1"]
    assert downloader.select(names, first_reconstruction=True) == ["train_1_a_9", "train_1_b_1"]


def test_where_the_first_reconstruction_shows_no_chest_the_next_is_taken(download, output):
    download("--splits", "train", "--reconstructions", 1)
    assert volumes(output) == {"train_1_a_1", "train_1_b_1", "train_2_a_1", "train_3_a_2", "train_4_a_1", "train_5_a_1"}


def test_a_list_of_volumes(download, output, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("# mine\ntrain_1_a_2.nii.gz\n\nvalid_1_a_1\ntrain_3_a_1\ntrain_1_a_2\n")
    download("--volumes", names)
    assert volumes(output) == {"train_1_a_2", "valid_1_a_1"}
    assert reasons(output) == {"in the no_chest list": 1}


def test_a_listed_name_that_no_table_has(download, output, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text("train_1_a_1\ntrain_77_a_1\ntrain_78_a_1\n")
    with pytest.raises(UserError, match=r"list.txt: train_77_a_1 is not in the labels .*nor are 1 others"):
        download("--volumes", names)
    assert not volumes(output)


def test_a_name_of_another_form_is_reported(download, hub, output):
    path = "dataset/multi_abnormality_labels/valid_predicted_labels.csv"
    hub.files[path] = hub.files[path].replace(b"valid_1_a_2", b"../../valid_9")
    download("--splits", "valid")
    assert volumes(output) == {"valid_1_a_1"}
    assert reasons(output) == {"no name of CT-RATE": 1, "in the no_chest list": 1}


def test_a_volume_that_the_hub_lacks_is_reported(download, hub, output):
    del hub.files[volume("train_2_a_1")]
    download("--splits", "train")
    assert volumes(output) == set(TRAIN) - NO_CHEST - {"train_2_a_1"}
    assert {"not on the hub": 1} | reasons(output) == reasons(output)
    assert report(output)["cases"] == {"train": 7}


def test_many_volumes_are_asked_for_in_parts(download, hub, downloader, output, monkeypatch):
    monkeypatch.setattr(downloader, "PATHS_A_REQUEST", 3)
    download("--splits", "train", "--dry_run")
    assert sum(method == "POST" for method, _, _ in hub.requests) == 1 + 3  # the tables; 8 volumes
    assert reasons(output) == {"in the no_chest list": 1}


def test_dry_run_lists_and_fetches_no_volume(download, hub, output, capsys):
    download("--dry_run")
    assert not volumes(output)
    assert not any(path.endswith(".nii.gz") for path in hub.asked("GET") + hub.asked("HEAD"))
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("dataset/")]
    assert sorted(listed) == sorted(volume(name) for name in {*TRAIN, *VALID} - NO_CHEST)


@pytest.mark.parametrize("arguments", [(), ("--dry_run",)])
def test_too_little_space(download, hub, output, arguments):
    hub.listed_sizes[volume("train_2_a_1")] = 10**18
    with pytest.raises(UserError, match=r"1000000000\.00 GB to fetch and [\d.]+ GB free"):
        download("--splits", "train", *arguments)
    assert not volumes(output)


# ------------------------------------------------------------------------------------------------------------ transfer


def test_a_second_run_fetches_nothing(download, hub, output, capsys):
    download()
    before = {file: file.stat().st_mtime_ns for file in output.rglob("*.nii.gz")}
    hub.requests.clear()
    download()
    assert not hub.asked("GET")
    assert not hub.asked("HEAD")
    assert len(hub.requests) == 1 + 2 + 1  # the commit, the tables of two splits, the volumes
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*.nii.gz")} == before
    assert "to fetch: 0, 0.00 GB" in capsys.readouterr().out


def test_files_that_were_copied_here_are_kept_by_size(download, hub, output):
    whole, short = volume("train_1_a_1"), volume("train_1_a_2")
    for path, content in ((whole, hub.files[whole]), (short, hub.files[short][:-1])):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        (output / path).write_bytes(content)
    download("--splits", "train")
    assert not (hub.asked("GET") + hub.asked("HEAD"))[whole]
    assert hub.asked("GET")[short] == 1
    assert (output / short).read_bytes() == hub.files[short]


def test_a_file_that_lost_its_end_is_fetched_again(download, hub, output):
    download("--splits", "valid")
    file = output / volume("valid_1_a_1")
    file.write_bytes(file.read_bytes()[:100])
    os.utime(file, (0, 0))  # older than the download, as for a file that a full disk cut
    download("--splits", "valid")
    assert file.read_bytes() == hub.files[volume("valid_1_a_1")]


def test_a_corrected_table_of_the_same_size_is_fetched_again(download, hub, output):
    path = "dataset/multi_abnormality_labels/valid_predicted_labels.csv"
    download("--splits", "valid", "--dry_run")
    hub.files[path] = hub.files[path].replace(b",0", b",1")
    hub.commit = "d8" * 20
    download("--splits", "valid", "--dry_run")
    assert (output / path).read_bytes() == hub.files[path]


def test_a_cut_transfer_goes_on_where_it_was(download, hub, output, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # the library keeps whole chunks, of 10 MiB
    path = volume("train_2_a_1")
    hub.halves[path] = 1
    download("--splits", "train")
    assert (output / path).read_bytes() == hub.files[path]
    ranges = [asked for method, where, asked in hub.requests if method == "GET" and where.endswith(path)]
    assert ranges == [None, f"bytes={len(hub.files[path]) // 2 // 4096 * 4096}-"]
    assert report(output)["cases"] == {"train": 8}


def test_a_reset_transfer_begins_again(download, hub, output):
    path = volume("train_2_a_1")
    hub.resets[path] = 1
    download("--splits", "train")
    assert (output / path).read_bytes() == hub.files[path]
    assert hub.asked("GET")[path] == 2


def test_a_file_that_keeps_failing_is_listed_and_the_others_go_on(download, hub, output, downloader, monkeypatch):
    monkeypatch.setattr(downloader.time, "sleep", lambda _: None)
    path = volume("train_2_a_1")
    hub.resets[path] = 99
    with pytest.raises(UserError, match=r"1 of 8 volumes failed, see .*download_report\.json; run the same command"):
        download("--splits", "train")
    assert volumes(output) == set(TRAIN) - NO_CHEST - {"train_2_a_1"}
    assert not list(output.rglob("*.incomplete"))
    assert hub.asked("GET")[path] == downloader.ATTEMPTS
    assert [p["where"] for p in report(output)["problems"] if p["reason"] == "download failed"] == [path]
    assert report(output)["cases"] == {"train": 7}
    hub.resets.clear()
    hub.requests.clear()
    download("--splits", "train")
    assert dict(hub.asked("GET")) == {path: 1}
    assert volumes(output) == set(TRAIN) - NO_CHEST


def test_a_server_that_sends_another_size_than_it_lists(download, hub, output):
    path = volume("train_2_a_1")
    hub.listed_sizes[path] = len(hub.files[path]) + 1
    with pytest.raises(UserError, match="1 of 8 volumes failed"):
        download("--splits", "train")
    assert not (output / path).exists()
    (failure,) = (p for p in report(output)["problems"] if p["reason"] == "download failed")
    assert failure["detail"] == f"the hub lists {len(hub.files[path]) + 1} bytes and sends {len(hub.files[path])}"


def test_a_volume_that_vanished_under_way_is_listed(download, hub, output):
    hub.errors[volume("train_2_a_1")] = 410
    with pytest.raises(UserError, match="1 of 8 volumes failed"):
        download("--splits", "train")
    assert "train_2_a_1" not in volumes(output)


def test_access_lost_under_way_ends_the_run_at_once(download, hub, output):
    download("--splits", "train", "--dry_run")
    hub.licence_accepted = False
    with pytest.raises(UserError, match="accept the licence"):
        download("--splits", "train", "--workers", 1)
    assert len(hub.asked("HEAD")) < 12
    assert not volumes(output)


def test_what_a_killed_run_left_is_removed(download, output):
    folder = output / ".cache/huggingface/download/dataset/train_fixed"
    folder.mkdir(parents=True)
    old, young = (folder / f"hash.etag.{name}.incomplete" for name in ("0123abcd", "4567abcd"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 3600,) * 2)
    download("--splits", "valid", "--dry_run")
    assert not old.exists()
    assert young.exists()  # another run may be writing it


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_leaves_nothing_that_looks_whole(hub, output):
    path = volume("train_2_a_1")
    hub.held[path] = threading.Event()
    running = process(hub.url, output, "--splits", "train", "--workers", 8, HF_TOKEN=TOKEN)
    deadline = time.monotonic() + 60
    while (len(volumes(output)) < 7 or not hub.asked("GET")[path]) and time.monotonic() < deadline:
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=10)
    assert running.returncode == 130
    assert "Traceback" not in stderr
    assert volumes(output) == set(TRAIN) - NO_CHEST - {"train_2_a_1"}
    assert not list(output.rglob("*.incomplete"))


# -------------------------------------------------------------------------------------------------------------- errors


def test_no_token(download, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        UserError, match=r"needs a token: accept the licence at .*CT-RATE, then set HF_TOKEN or run `hf"
    ):
        download()


def test_refused_token(download, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        UserError, match=r"refuses the token \(401\): set HF_TOKEN to a valid one, or run `hf auth login`"
    ):
        download()


def test_licence_not_accepted(download, hub):
    hub.licence_accepted = False
    with pytest.raises(UserError, match=rf"accept the licence at {hub.url}/datasets/ibrahimhamamci/CT-RATE") as error:
        download()
    assert "You are not in the authorized list." in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--repository", "nobody/nothing"), "nobody/nothing does not exist, or this token may not see it"),
        (("--repository", "no name"), "--repository no name: Repo id must"),
        (("--revision", "v77"), "CT-RATE has no revision v77"),
    ],
)
def test_wrong_names(download, arguments, message):
    with pytest.raises(UserError, match=message):
        download(*arguments)


def test_an_output_that_is_a_file(download, output):
    output.touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        download()


def test_a_repository_without_tables(download, hub):
    del hub.files["dataset/multi_abnormality_labels/valid_predicted_labels.csv"]
    with pytest.raises(UserError, match=r"has no dataset/multi_abnormality_labels/valid_predicted_labels\.csv"):
        download()


def test_an_endpoint_that_is_no_hub(download, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "htp://nowhere")
    with pytest.raises(UserError, match=r"no hub answers at htp://nowhere .*check the network and HF_ENDPOINT"):
        download()


def test_a_hub_that_is_out_of_order(download, hub):
    hub.errors["paths-info"] = 503
    with pytest.raises(UserError, match=rf"{hub.url} answers with an error: Server error '503"):
        download()


def test_offline(download, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        download()


def test_an_endpoint_that_cannot_be_reached_is_known_at_once(download, monkeypatch):
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        start = time.monotonic()
        with pytest.raises(UserError, match=f"no hub answers at {nowhere} .*check the network and HF_ENDPOINT"):
            download()
    assert time.monotonic() - start < 10


def test_as_users_run_it(hub, output):
    """In a process of its own, which reads HF_ENDPOINT and HF_TOKEN: exit code 2, and one line of errors."""
    output.mkdir()
    hub.errors[volume("valid_1_a_2")] = 404
    running = process(hub.url, output, "--splits", "valid", HF_TOKEN=TOKEN)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 2
    (line,) = stderr.splitlines()
    assert line.startswith("error: 1 of 2 volumes failed, see ")
    assert volumes(output) == {"valid_1_a_1"}
