import errno
import json
import os
import pickle

import pytest
import torch
from torch import nn

from core import checkpoints
from core.checkpoints import damage, load_model_folder, load_weights, replacing, save_model
from core.errors import UserError


def test_a_model_folder_comes_back_whole(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    save_model(tmp_path / "best", model, {"name": "é", "size": [1, 2]})
    for folder in (tmp_path / "best", tmp_path):  # a run folder stands for its best/
        state, config = load_model_folder(folder)
        assert config == {"name": "é", "size": [1, 2]}
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert damage(tmp_path / "best") is None
    assert sorted(os.listdir(tmp_path)) == ["best"]


def test_every_kind_of_damage_is_seen(tmp_path):
    save_model(tmp_path / "best", nn.Linear(3, 4), {})
    weights = tmp_path / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_model_folder(tmp_path / "best")
    weights.write_bytes(content[:-5])
    assert "damaged" in damage(tmp_path / "best")
    (tmp_path / "best" / "checksums.json").write_text("{")
    assert "unreadable" in damage(tmp_path / "best")
    (tmp_path / "best" / "checksums.json").unlink()
    assert "missing" in damage(tmp_path / "best")
    with pytest.raises(UserError, match="not a model folder"):
        load_model_folder(tmp_path / "nothing")


def test_a_failed_write_leaves_what_was_there(tmp_path):
    folder, previous = tmp_path / "last", tmp_path / "previous"
    for content in "ab":
        with replacing(folder, previous) as writing:
            (writing / "x").write_text(content)
    assert ((folder / "x").read_text(), (previous / "x").read_text()) == ("b", "a")

    def write(error):
        with replacing(folder) as writing:
            (writing / "x").write_text("half")
            raise error

    with pytest.raises(UserError, match=r"cannot write .*last .*No space left.*untouched"):
        write(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ZeroDivisionError):  # a programmer's mistake is not dressed up
        write(ZeroDivisionError())
    assert (folder / "x").read_text() == "b"
    assert damage(folder) is None
    assert not any(name.startswith(".") for name in os.listdir(tmp_path))


@pytest.mark.parametrize("crash_at", ["seal", "before the first rename", "between the renames"])
def test_a_crash_at_any_moment_leaves_a_good_folder(tmp_path, monkeypatch, crash_at):
    folder, previous = tmp_path / "last", tmp_path / "previous"
    with replacing(folder, previous) as writing:
        (writing / "x").write_text("good")

    class Crash(BaseException):
        """As a SIGKILL: nothing after it runs, not even the cleaning up."""

    calls = {"seal": 0, "replace": 0}
    real_replace, real_seal = os.replace, checkpoints.seal

    def replace(a, b):
        calls["replace"] += 1
        if crash_at == "before the first rename" or (crash_at == "between the renames" and calls["replace"] == 2):
            raise Crash
        real_replace(a, b)

    def seal(folder):
        if crash_at == "seal":
            raise Crash
        real_seal(folder)

    monkeypatch.setattr(checkpoints.os, "replace", replace)
    monkeypatch.setattr(checkpoints, "seal", seal)
    monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *a, **k: None)
    with pytest.raises(Crash), replacing(folder, previous) as writing:
        (writing / "x").write_text("new")
    monkeypatch.undo()
    good = [f for f in (folder, previous) if f.is_dir() and damage(f) is None and (f / "x").read_text() == "good"]
    assert good
    with replacing(folder, previous) as writing:  # and the next write works
        (writing / "x").write_text("newer")
    assert (folder / "x").read_text() == "newer"


def test_legacy_weights_lose_their_wrappings(tmp_path):
    tensor = torch.arange(3.0)
    contents = [
        {"a": tensor},
        {"state_dict": {"module.a": tensor}, "epoch": 3},
        {"model_state_dict": {"_orig_mod.a": tensor}},
        {"model": {"a": tensor}},
    ]
    for i, content in enumerate(contents):
        torch.save(content, tmp_path / f"{i}.pth")
        assert torch.equal(load_weights(tmp_path / f"{i}.pth")["a"], tensor)


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


def test_a_pickle_that_runs_code_is_refused_unrun(tmp_path):
    torch.save({"state_dict": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(UserError, match=name):
            load_weights(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_unusable_weights_files_are_named(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("empty.pth", "torn.safetensors", "none.pth", "list.pth", "missing.pth"):
        with pytest.raises(UserError, match=name):
            load_weights(tmp_path / name)


def test_config_is_readable_json(tmp_path):
    save_model(tmp_path / "best", nn.Linear(1, 1), {"units": "mm"})
    assert json.loads((tmp_path / "best" / "config.json").read_text()) == {"units": "mm"}
