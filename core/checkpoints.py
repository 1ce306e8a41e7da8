"""Folders on disk that are whole or absent: model folders (weights + config), sealed with checksums.

A model folder holds `model.safetensors`, `config.json` (all that inference needs) and `checksums.json`. A folder is
written under another name, flushed to the disk, and renamed, so that a crash at any moment leaves the old one or the
new one. Weights of other programs (`.pth`, `.safetensors`) are read without running code that a file may hold.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch

from core.errors import UserError, first_line
from core.files import flush, read_json, require_file
from core.results import plain

WEIGHTS, CONFIG, CHECKSUMS = "model.safetensors", "config.json", "checksums.json"
COPY_AGAIN = "copy it again, or train again"


def writing_name(folder: Path) -> Path:
    """The name under which `replacing` writes `folder`."""
    return folder.with_name(f".{folder.name}.writing")


@contextlib.contextmanager
def replacing(folder: Path, keep: Path | None = None) -> Iterator[Path]:
    """A temporary folder to write into; when the block ends well it is sealed and becomes `folder`.

    The folder that stood there becomes `keep`, or goes. If the writing fails, what stood there stays, the temporary
    folder goes, and the failure (a full disk, most often) is raised as `UserError`.
    """
    folder = Path(folder)
    writing, leaving = writing_name(folder), keep or folder.with_name(f".{folder.name}.old")
    shutil.rmtree(writing, ignore_errors=True)  # left over from a crash
    try:
        # One good copy is enough while the next is written: `keep` goes first, so that the disk holds two, not three.
        if folder.exists():
            shutil.rmtree(leaving, ignore_errors=True)
        writing.mkdir(parents=True)
        yield writing
        seal(writing)
        if folder.exists():
            os.replace(folder, leaving)
        os.replace(writing, folder)
        flush(folder.parent)
    except BaseException as error:
        shutil.rmtree(writing, ignore_errors=True)
        if isinstance(error, OSError | RuntimeError | safetensors.SafetensorError):  # as torch and safetensors wrap it
            before = any(place.exists() for place in (folder, leaving))
            good = "the one written before is untouched" if before else "there was none before"
            reason = first_line(error)
            raise UserError(f"cannot write {folder} ({reason}); {good}; make room, then --resume") from error
        raise
    if keep is None:
        shutil.rmtree(leaving, ignore_errors=True)


def seal(folder: Path) -> None:
    """Writes `checksums.json` with the SHA-256 of every file in `folder`, and flushes all of them to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    checksums = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1))
    for path in [*files, folder / CHECKSUMS, folder]:
        flush(path)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words; None if it is as it was written."""
    try:
        checksums = read_json(folder / CHECKSUMS)
        if not checksums:
            return f"{CHECKSUMS} names no file"
        for name, checksum in checksums.items():
            if os.path.isabs(name) or ".." in Path(name).parts:  # /dev/zero has no end
                return f"{CHECKSUMS} names {name}, which is not in it"
            if _sha256(folder / name) != checksum:
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{CHECKSUMS} is unreadable ({error})"
    return None


def _sha256(path: Path) -> str:
    require_file(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_model(folder: Path, model: torch.nn.Module, config: dict, keep: Path | None = None) -> None:
    """Writes a model folder. `config` holds what inference needs: architecture, input size, normalisation, units.
    The folder that stood there becomes `keep`, or goes."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder, keep) as writing:
        safetensors.torch.save_file(state, writing / WEIGHTS)
        (writing / CONFIG).write_text(json.dumps(plain(config), indent=1, ensure_ascii=False), encoding="utf-8")


def load_model_folder(folder: Path, *kinds: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Returns (state_dict, config) of a model folder; a run folder stands for its `best/`.

    `kinds`: the config's "kind" must be one of them; none = any. Raises UserError if it is no such folder, is damaged,
    or holds a model of another kind.
    """
    folder = Path(folder)
    if (folder / "best" / WEIGHTS).is_file():
        folder = folder / "best"
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a model folder ({WEIGHTS} and {CONFIG}); give the best/ folder of a run")
    if problem := damage(folder):
        raise UserError(f"{folder}: {problem}; {COPY_AGAIN}")
    try:
        config, state = read_json(folder / CONFIG), safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} cannot be read: {first_line(error)}; {COPY_AGAIN}") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder}: {CONFIG} holds no settings of a model; {COPY_AGAIN}")
    if kinds and config.get("kind") not in kinds:
        raise UserError(f"{folder} holds a model of kind {config.get('kind')!r}, not {' or '.join(map(repr, kinds))}")
    return state, config


@contextlib.contextmanager
def fitting(source: Path) -> Iterator[None]:
    """For a block that builds a model of a folder's config and weights, or of a file's weights: if they do not fit, it
    raises UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        # torch lists every weight that does not fit, one a line
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        what = "these weights do not fit the model" if source.is_file() else f"{CONFIG} and {WEIGHTS} do not fit"
        raise UserError(f"{source}: {what} ({reason}); {COPY_AGAIN}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from `.safetensors`, or from a legacy `.pth`/`.pt`/`.bin` read with `weights_only=True`.

    The wrappings that training programs leave are taken off: an outer dict (`state_dict`, `model_state_dict`,
    `model`), and the prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile). Raises UserError for a
    missing file, for one that holds no tensors, and for a pickle that wants to run code (which it does not get to).
    """
    path = Path(path)
    if path.is_dir():
        return load_model_folder(path)[0]
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:
                    if any(part.compress_type for part in archive.infolist()):  # a few MB may unpack to gigabytes
                        raise ValueError("it is compressed, which torch.save does not do")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for weights, and was not read") from None
    except pickle.UnpicklingError as error:
        # torch's own words advise to load it all the same
        raise UserError(
            f"{path} is damaged, or holds more than tensors and was not read; save its state_dict"
        ) from error
    except Exception as error:  # neither torch nor pickle promises a kind of error for a damaged file
        raise UserError(f"{path} is damaged or no weights file: {first_line(error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        if isinstance(tensor, torch.Tensor):
            tensors[str(name).removeprefix("module.").removeprefix("_orig_mod.")] = tensor
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors
