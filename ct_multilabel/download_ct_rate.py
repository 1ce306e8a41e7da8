"""Downloads a part of CT-RATE from the Hugging Face Hub: the tables, then whole patients.

    python ct_multilabel/download_ct_rate.py --output CT-RATE --max_patients 100 --dry_run    # files and sizes only
    python ct_multilabel/download_ct_rate.py --output CT-RATE --max_patients 100              # also resumes
    python ct_multilabel/download_ct_rate.py --output CT-RATE --splits valid --reconstructions 1
    python ct_multilabel/download_ct_rate.py --output CT-RATE --volumes LIST.txt              # names, one per line

CT-RATE (Hamamci et al. 2024) is for non-commercial use (CC-BY-NC-SA-4.0) and gated: accept its licence once at
https://huggingface.co/datasets/ibrahimhamamci/CT-RATE, then set HF_TOKEN or run `hf auth login`. HF_ENDPOINT sets a
mirror of the Hub. Volumes in the no_chest lists are left out. OUTPUT/download_report.json lists left-out and failed
volumes.
"""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import hashlib
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress

from huggingface_hub import HfApi, RepoFile, errors, get_session, get_token
from huggingface_hub.utils import disable_progress_bars, logging
from rich.console import Console

from core.args import NOT_WRITABLE, ArgumentParser, positive_int, script
from core.console import make_console, progress
from core.errors import UserError, first_line
from core.validation import DataReport
from ct import ct_rate

REPOSITORY = "ibrahimhamamci/CT-RATE"
TIMEOUT = 60  # s without a response
ATTEMPTS = 3  # per file; within each, huggingface_hub resumes interrupted transfers
PATHS_A_REQUEST = 500
STALE = 600  # s without a write after which a partial file is abandoned; transfers time out much sooner


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="output folder: the CT-RATE tree")
    parser.add_argument("--dry_run", action="store_true", help="list volumes and sizes, fetch only tables")
    group = parser.add_argument_group("selection")
    group.add_argument("--splits", nargs="+", choices=ct_rate.SPLITS, default=ct_rate.SPLITS, help="splits to fetch")
    group.add_argument("--volumes", type=Path, metavar="LIST", help="list of volumes such as train_1_a_1, one per line")
    group.add_argument("--max_patients", type=positive_int, metavar="N", help="patients per split; more includes fewer")
    group.add_argument("--max_volumes", type=positive_int, metavar="N", help="volumes per split, in whole patients")
    group.add_argument("--reconstructions", choices=("1", "all"), default="all", help="reconstructions per scan")
    group.add_argument("--version", choices=ct_rate.VERSIONS, default="fixed", help="fixed is in HU, v1 is not")
    group.add_argument("--seed", type=int, default=0, help="random seed of the order of patients")
    group = parser.add_argument_group("hub")
    group.add_argument("--repository", default=REPOSITORY, metavar="NAME", help="data set with the tree of CT-RATE")
    group.add_argument("--revision", default="main", help="branch, tag or commit of the data set")
    group.add_argument("--workers", type=positive_int, default=4, help="parallel downloads")
    args = parser.parse_args(argv)
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file; name a folder")
    return args


def main(argv=None):
    args = parse_args(argv)
    console, report, api = make_console(), DataReport(), HfApi()
    console.print(f"{args.repository}: CT-RATE is licensed CC-BY-NC-SA-4.0, for non-commercial use only")
    disable_progress_bars()  # one progress bar for all files
    logging.set_verbosity_error()  # errors are reported below, retries are not
    get_session().timeout = TIMEOUT  # file lists have no timeout by default

    with plain_errors(api, args):
        # All files come from one commit, which cannot change during the download; this also saves a request per file.
        commit = api.dataset_info(args.repository, revision=args.revision, expand=["sha"], timeout=TIMEOUT).sha
        source = {"repo_id": args.repository, "repo_type": "dataset", "revision": commit}
        args.output.mkdir(parents=True, exist_ok=True)
        remove_partials(args.output, STALE)
        fetch_tables(api, source, args.output, args.splits, report)

    names = choose_volumes(args, report)
    paths = {name: ct_rate.volume_file(Path(), name, args.version).as_posix() for name in names}
    with plain_errors(api, args):
        sizes = hub_sizes(api, source, list(paths.values()), console)
    for name in [name for name, path in paths.items() if path not in sizes]:
        report.add("not on the hub", paths.pop(name), "left out")
    to_fetch = {path: sizes[path] for path in paths.values() if not is_whole(args.output / path, sizes[path])}
    patients = len({ct_rate.patient_of(name) for name in paths})
    console.print(
        f"{len(paths)} volumes of {patients} patients, {gigabytes(sizes.values())}; "
        f"to fetch: {len(to_fetch)}, {gigabytes(to_fetch.values())}"
    )

    failed = {}
    if args.dry_run:
        for path, size in to_fetch.items():
            console.print(f"{path}  {size / 1e6:.1f} MB")
    check_space(args.output, sum(to_fetch.values()))
    if not args.dry_run:
        with plain_errors(api, args):
            failed = fetch_volumes(api, source, args.output, to_fetch, args.workers, console)

    for path, reason in failed.items():
        report.add("download failed", path, "left out", reason)
    splits = Counter(ct_rate.NAME.fullmatch(name)["split"] for name, path in paths.items() if path not in failed)
    report.cases = {split: splits[split] for split in args.splits}
    file = args.output / "download_report.json"
    report.write(file)
    report.print(console, file)
    if failed:
        raise UserError(f"{len(failed)} of {len(to_fetch)} volumes failed, see {file}; run the same command again")


# ----------------------------------------------------------------------------------------------------------- selection


def choose_volumes(args, report: DataReport) -> list[str]:
    """Names of the volumes that the arguments select from the tables in `args.output`.

    Volumes in the no_chest lists are left out and reported. Raises UserError for a listed name without a row in the
    label tables, and for an empty selection.
    """
    tables = {split: ct_rate.read_labels(ct_rate.labels_file(args.output, split), report)[1] for split in args.splits}
    listed = dict.fromkeys(ct_rate.read_names(args.volumes)) if args.volumes else None
    unknown = [name for name in listed or () if not any(name in table for table in tables.values())]
    if unknown:
        others = f" (nor are {len(unknown) - 1} others)" if unknown[1:] else ""
        splits = " and ".join(args.splits)
        raise UserError(f"{args.volumes}: {unknown[0]} is not in the labels of {splits}{others}; correct the list")
    chosen = []
    for split, table in tables.items():
        file = ct_rate.no_chest_file(args.output, split)
        no_chest = set(ct_rate.read_names(file)) if file.is_file() else set()
        names = []
        for name in table if listed is None else [name for name in listed if name in table]:
            if ct_rate.patient_of(name) is None:
                report.add("no name of CT-RATE", f"{ct_rate.labels_file(args.output, split)}, {name}", "left out")
            elif name in no_chest:
                report.add("in the no_chest list", name, "left out")
            else:
                names.append(name)
        chosen += select(names, args.max_patients, args.max_volumes, args.reconstructions == "1", args.seed)
    if not chosen:
        raise UserError(f"{args.output}: no volume selected from the tables; choose other --splits or --volumes")
    return chosen


def select(
    names: Iterable[str],
    max_patients: int | None = None,
    max_volumes: int | None = None,
    first_reconstruction: bool = False,
    seed: int = 0,
) -> list[str]:
    """Selection of whole patients from the volumes `names`, in a random order given by `seed`.

    The place of a patient in the order depends on seed and name only: a larger selection contains every smaller one.
    Raises UserError if the first patient exceeds `max_volumes`.
    """
    scans = defaultdict(lambda: defaultdict(list))  # patient -> scan -> reconstructions
    for name in names:
        match = ct_rate.NAME.fullmatch(name)
        scans[match["patient"]][match["scan"]].append((int(match["reconstruction"]), name))
    order = sorted(scans, key=lambda patient: hashlib.sha256(f"{seed} {patient}".encode()).digest())
    chosen = []
    for patient in order[:max_patients]:
        volumes = []
        for _, reconstructions in sorted(scans[patient].items()):
            volumes += [name for _, name in sorted(reconstructions)[: 1 if first_reconstruction else None]]
        if max_volumes is not None and len(chosen) + len(volumes) > max_volumes:
            if not chosen:
                raise UserError(f"--max_volumes {max_volumes}: {patient}, the first, alone has {len(volumes)} volumes")
            break
        chosen += volumes
    return chosen


# ------------------------------------------------------------------------------------------------------------ download


def hub_sizes(api: HfApi, source: dict, paths: list[str], console: Console) -> dict[str, int]:
    """Path -> size in bytes, for those of `paths` that exist on the Hub."""
    sizes = {}
    starts = range(0, len(paths), PATHS_A_REQUEST)
    with progress(console, "sizes", len(starts)) as advance:
        for start in starts:
            entries = api.get_paths_info(paths=paths[start : start + PATHS_A_REQUEST], **source)
            sizes |= {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
            advance()
    return sizes


def fetch_tables(api: HfApi, source: dict, output: Path, splits: Sequence[str], report: DataReport) -> None:
    """Downloads or updates the tables of `splits`. Raises UserError if the Hub has no label table."""
    for split in splits:
        labels = ct_rate.labels_file(Path(), split)
        tables = [labels, ct_rate.metadata_file(Path(), split), ct_rate.no_chest_file(Path(), split)]
        sizes = hub_sizes(api, source, [table.as_posix() for table in tables], make_console(quiet=True))
        if labels.as_posix() not in sizes:
            raise UserError(f"{source['repo_id']} has no {labels.as_posix()}; --repository takes a copy of CT-RATE")
        for table in tables:
            if table.as_posix() in sizes:
                fetch(api, source, output, table.as_posix(), sizes[table.as_posix()])
            else:
                report.add("not on the hub", table.as_posix(), "left out")


def fetch_volumes(
    api: HfApi, source: dict, output: Path, sizes: dict[str, int], workers: int, console: Console
) -> dict[str, str]:
    """Downloads files in parallel. `sizes`: path -> bytes; returns the failed ones: path -> reason.

    Errors that affect all files (no access, full disk) are raised at once.
    """
    failed = {}
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {pool.submit(fetch, api, source, output, path, size): path for path, size in sizes.items()}
        with progress(console, "volumes", len(jobs)) as advance:
            for job in as_completed(jobs):
                error = cause(job.exception())
                if no_access(error) or not_writable(error):
                    raise error
                if error:
                    failed[jobs[job]] = first_line(error)
                advance()
    except KeyboardInterrupt:
        # Python would wait for the running transfers, which cannot be cancelled. Their partial files in .cache have
        # random names and cannot be resumed.
        remove_partials(output)
        os._exit(130)
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def fetch(api: HfApi, source: dict, output: Path, path: str, size: int) -> None:
    """Downloads one file of `size` bytes in up to ATTEMPTS attempts; huggingface_hub renames it when it is complete.
    Raises the library's errors, and OSError for another size."""
    file = output / path
    if not is_whole(file, size):
        file.unlink(missing_ok=True)  # huggingface_hub does not check the size of existing files
    for attempt in range(1, ATTEMPTS + 1):
        try:
            api.hf_hub_download(filename=path, local_dir=output, **source)
            break
        except Exception as error:  # closed connections raise OSError, httpx errors or RuntimeError
            refusal = cause(error)
            refused = isinstance(refusal, errors.HfHubHTTPError) and refusal.response.status_code < 500
            if refused or not_writable(error) or attempt == ATTEMPTS:
                raise
            time.sleep(attempt)
    if not is_whole(file, size):
        found = file.stat().st_size
        file.unlink()
        raise OSError(f"the hub lists {size} bytes and sends {found}")


def is_whole(file: Path, size: int) -> bool:
    """Whether a file exists and has `size` bytes."""
    return file.is_file() and file.stat().st_size == size


def remove_partials(output: Path, age: float = 0) -> None:
    """Deletes partial files of killed runs that were not written to for `age` seconds."""
    for file in (output / ".cache" / "huggingface" / "download").rglob("*.????????.incomplete"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime >= age:
                file.unlink()


def check_space(output: Path, size: int) -> None:
    """Raises UserError if the disk has less than `size` bytes free."""
    free = shutil.disk_usage(output).free
    if size > free:
        raise UserError(
            f"{output}: {gigabytes([size])} to fetch and {gigabytes([free])} free; "
            "select less (--max_patients, --reconstructions 1) or choose another --output"
        )


def gigabytes(sizes: Iterable[int]) -> str:
    """Sum of sizes in bytes, as text in GB."""
    return f"{sum(sizes) / 1e9:.2f} GB"


# -------------------------------------------------------------------------------------------------------------- errors


def cause(error: BaseException | None) -> BaseException | None:
    """Original error behind a LocalEntryNotFoundError; other errors unchanged."""
    return error.__cause__ or error if isinstance(error, errors.LocalEntryNotFoundError) else error


def not_writable(error: BaseException | None) -> bool:
    """Whether the output folder cannot be written."""
    return isinstance(error, OSError) and error.errno in NOT_WRITABLE


def no_access(error: BaseException | None) -> bool:
    """Whether the Hub refuses access, with or without a token."""
    return isinstance(error, errors.GatedRepoError) or (
        isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403)
    )


@contextmanager
def plain_errors(api: HfApi, args) -> Iterator[None]:
    """Context manager: raises errors of huggingface_hub as UserError with a remedy."""
    try:
        yield
    except UserError:
        raise
    except Exception as raised:
        if not_writable(raised):
            raise
        raise UserError(explain(cause(raised), api.endpoint, args.repository, args.revision)) from raised


def explain(error: BaseException, endpoint: str, repository: str, revision: str) -> str:
    """Message with a remedy for an error of the Hub."""
    page = f"{endpoint}/datasets/{repository}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if no_access(error) and get_token() is None:
        return f"{repository} needs a token: accept the licence at {page}, then set HF_TOKEN or run `hf auth login`"
    if status == 401:
        return f"{endpoint} refuses the token (401): set HF_TOKEN to a valid one, or run `hf auth login` again"
    if no_access(error):
        said = f" ({first_line(error.server_message)})" if error.server_message else ""
        return f"this token may not read {repository}{said}: accept the licence at {page} with the token's account"
    if isinstance(error, errors.HFValidationError):
        return f"--repository {repository}: {first_line(error)}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} has no revision {revision}: --revision takes a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{page} does not exist, or this token may not see it: check --repository and the token"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to download"
    if status is not None:
        return f"{endpoint} answers with an error: {first_line(error)}"
    return f"no hub answers at {endpoint} ({first_line(error)}): check the network and HF_ENDPOINT, then try again"


if __name__ == "__main__":
    script(main)
