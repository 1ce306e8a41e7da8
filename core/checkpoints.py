"""Atomic writes of folders with checksums, model folders, and weights files.

A model folder holds `model.safetensors`, `config.json` (all that inference needs) and `checksums.json`. Folders are
written under a temporary name, flushed to disk, and renamed: after a crash, either the old or the new folder is intact.
Weights files of other programs (`.pth`, `.safetensors`) are read without executing code.
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
    """Temporary folder in which `replacing` writes `folder`."""
    return folder.with_name(f".{folder.name}.writing")


@contextlib.contextmanager
def replacing(folder: Path, keep: Path | None = None) -> Iterator[Path]:
    """Temporary folder for an atomic write: sealed and renamed to `folder` when the block succeeds.

    An existing folder is renamed to `keep`, or deleted. After an error it is unchanged and the temporary folder is
    deleted; I/O errors (mostly a full disk) are raised as UserError.
    """
    folder = Path(folder)
    writing, leaving = writing_name(folder), keep or folder.with_name(f".{folder.name}.old")
    shutil.rmtree(writing, ignore_errors=True)  # from an earlier crash
    try:
        # `keep` is deleted before writing, so that the disk holds at most two copies, not three.
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
        if isinstance(error, OSError | RuntimeError | safetensors.SafetensorError):  # also wrapped I/O errors
            before = any(place.exists() for place in (folder, leaving))
            good = "the one written before is untouched" if before else "none was written before"
            reason = first_line(error)
            raise UserError(f"cannot write {folder} ({reason}); {good}; make room, then --resume") from error
        raise
    if keep is None:
        shutil.rmtree(leaving, ignore_errors=True)


def seal(folder: Path) -> None:
    """Writes `checksums.json` with the SHA-256 checksums of all files in `folder`, and flushes everything to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    checksums = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    (folder / CHECKSUMS).write_text(json.dumps(checksums, indent=1))
    for path in [*files, folder / CHECKSUMS, folder]:
        flush(path)


def damage(folder: Path) -> str | None:
    """Damage of a sealed folder as one line, such as "optimizer.bin is missing"; None if all checksums match."""
    try:
        checksums = read_json(folder / CHECKSUMS)
        if not checksums:
            return f"{CHECKSUMS} lists no files"
        for name, checksum in checksums.items():
            if os.path.isabs(name) or ".." in Path(name).parts:  # e.g. /dev/zero, which never ends
                return f"{CHECKSUMS} lists {name}, which is outside the folder"
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
    """Writes a model folder; an existing one is renamed to `keep`, or deleted. `config`: all that inference needs
    (architecture, input size, normalisation, units). Raises UserError if the folder cannot be written."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder, keep) as writing:
        safetensors.torch.save_file(state, writing / WEIGHTS)
        (writing / CONFIG).write_text(json.dumps(plain(config), indent=1, ensure_ascii=False), encoding="utf-8")


def load_model_folder(folder: Path, *kinds: str) -> tuple[dict[str, torch.Tensor], dict]:
    """(state dict, config) of a model folder, or of `best/` in a run folder.

    `kinds`: accepted values of the config's "kind"; none = any. Raises UserError for other or damaged folders, and for
    models of another kind.
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
        raise UserError(f"{folder}: {CONFIG} is not a model configuration; {COPY_AGAIN}")
    if kinds and config.get("kind") not in kinds:
        raise UserError(f"{folder} holds a model of kind {config.get('kind')!r}, not {' or '.join(map(repr, kinds))}")
    return state, config


@contextlib.contextmanager
def fitting(source: Path) -> Iterator[None]:
    """Context manager around building a model from the model folder or weights file `source`: raises UserError if
    configuration, weights and model do not fit together."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        # torch lists the weights that do not fit on several lines
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        what = "these weights do not fit the model" if source.is_file() else f"{CONFIG} and {WEIGHTS} do not fit"
        raise UserError(f"{source}: {what} ({reason}); {COPY_AGAIN}") from error


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict of a model folder, a `.safetensors` file, or a `.pth`/`.pt`/`.bin` file read with `weights_only=True`.

    An outer dict (`state_dict`, `model_state_dict`, `model`) and the prefixes `module.` (DataParallel) and `_orig_mod.`
    (torch.compile) are removed. Raises UserError for a missing or damaged file, a file without tensors, and a pickle
    with other objects, whose code is not executed.
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
                    if any(part.compress_type for part in archive.infolist()):  # a few MB may expand to gigabytes
                        raise ValueError("compressed, unlike files of torch.save")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except RecursionError:
        raise UserError(f"{path} is not a weights file: nested too deeply; save a state_dict") from None
    except pickle.UnpicklingError as error:  # torch's message recommends loading the file without this safety check
        raise UserError(f"{path} is damaged or holds more than tensors, and was not read; save a state_dict") from error
    except Exception as error:  # damaged files raise all kinds of exceptions
        raise UserError(f"{path} is damaged or not a weights file: {first_line(error)}") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    tensors = {}
    for name, tensor in state.items() if isinstance(state, dict) else ():
        if isinstance(tensor, torch.Tensor):
            tensors[str(name).removeprefix("module.").removeprefix("_orig_mod.")] = tensor
    if not tensors:
        raise UserError(f"{path} holds no tensors; save a state_dict")
    return tensors
