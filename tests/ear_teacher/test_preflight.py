"""test_sam_model.py, the check before hours of training: it passes where all is well, and fails where a defect is."""

import pytest
import torch

from conftest import ROOT, load_script
from core.errors import UserError
from ear.losses import WEIGHTS
from ear.sam_vae import EarVAE
from launch import run

SCRIPT = "ear_teacher/test_sam_model.py"
TINY = "--sam_config tiny --sam_image_size 64 --image_size 32 --latent_dim 8 --freeze_layers 2"
NO_VGG = "no perceptual term: VGG16's weights could not be fetched"


@pytest.fixture
def check(vgg_file, capsys):
    """Runs the script in this process: `check(*flags, defect=None)` gives (exit code, what it printed). A `defect` is
    what befalls the model before the checks."""

    def run_script(*flags, defect=None):
        script, code = load_script(SCRIPT), 0

        def make(*arguments, **options):
            model = EarVAE(*arguments, **options)
            defect(model)
            return model

        if defect:
            script.EarVAE = make
        try:
            script.main([*TINY.split(), "--vgg_weights", str(vgg_file), *map(str, flags)])
        except SystemExit as end:
            code = end.code
        return code, " ".join(capsys.readouterr().out.split())

    return run_script


@pytest.fixture
def no_download(monkeypatch):
    """Fetching VGG16 fails, as without internet."""

    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.VGG16_Weights.get_state_dict", refuse)


def test_all_is_well(check):
    code, said = check()
    assert code == 0
    assert said.count("ok ") == 3
    assert "All 3 checks passed" in said
    assert "FAILED" not in said
    model = EarVAE("tiny", sam_image_size=64, latent_dim=8, image_size=32, freeze_layers=2)
    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for number, name in ((total, "parameters"), (total - frozen, "to train"), (frozen, "frozen")):
        assert f"{number / 1e6:.1f} M {name}" in said
    assert f"of {len(WEIGHTS)} terms" in said


@pytest.mark.parametrize("flags", [["--batch_size", 1], ["--mixed_precision", "bf16", "--gradient_checkpointing"]])
def test_other_steps_pass_too(check, flags):
    code, said = check(*flags)
    assert (code, said.count("ok ")) == (0, 3), said


def test_without_vgg_it_says_so_and_goes_on(capsys, no_download):
    load_script(SCRIPT).main(TINY.split())
    said = " ".join(capsys.readouterr().out.split())
    assert NO_VGG in said
    assert "train.py needs them, see --vgg_weights" in said
    assert f"of {len(WEIGHTS) - 1} terms" in said
    assert "All 3 checks passed" in said


# ------------------------------------------------------------------------------------------------ defects


def spoil_sam(model):
    """As a damaged file of weights would."""
    with torch.no_grad():
        next(model.encoder.sam.parameters()).fill_(torch.nan)


def blind_sam(model):
    model.encoder.sam.forward = lambda images: torch.ones(len(images), model.encoder.sam.channels, 4, 4)


def cut_off_sam(model):
    forward = model.encoder.sam.forward
    model.encoder.sam.forward = lambda images: forward(images).detach()


def wake_frozen(model):
    """A gradient where none should be."""
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    frozen.grad = torch.zeros_like(frozen)


def draw_in_eval(model):
    decode = model.decoder.forward
    model.decoder.forward = lambda z: decode(z + torch.randn_like(z))


def leave_range(model):
    decode = model.decoder.forward
    model.decoder.forward = lambda z: 3 + decode(z)


def run_out_of_memory(model):
    def refuse(_):
        raise torch.OutOfMemoryError("out of memory: tried to allocate 64 GiB")

    model.decoder.forward = refuse


@pytest.mark.parametrize(
    ("defect", "failed", "says"),
    [
        (spoil_sam, ["encoder", "VAE", "training step"], "features are not finite"),
        (blind_sam, ["encoder", "training step"], "a picture and its mirror image have the same features"),
        (cut_off_sam, ["training step"], "parameters have no finite gradient, encoder.sam."),
        (wake_frozen, ["training step"], "1 frozen parameters have a gradient, encoder.sam."),
        (draw_in_eval, ["VAE"], "two passes in eval differ"),
        (leave_range, ["VAE"], "reconstructions leave [-1, 1]"),
        (run_out_of_memory, ["VAE", "training step"], "tried to allocate 64 GiB"),
    ],
)
def test_a_defect_is_found(check, defect, failed, says):
    code, said = check(defect=defect)
    assert code == 1
    for name in ("encoder", "VAE", "training step"):
        assert (f"FAILED {name}: " in said, f"ok {name}: " in said) == (name in failed, name not in failed), said
    assert says in said
    assert "checks passed" not in said


# ------------------------------------------------------------------------------------------------ the command line


def test_the_script_ends_with_1_where_a_check_fails_and_says_which(tmp_path, vgg_file):
    """A copy of the script whose model has a defect."""
    text = (ROOT / SCRIPT).read_text(encoding="utf-8").replace("if __name__", DEFECT + "if __name__")
    (tmp_path / "check.py").write_text(text.replace("__file__", repr(str(ROOT / SCRIPT))), encoding="utf-8")
    done = run(tmp_path / "check.py", *TINY.split(), "--vgg_weights", vgg_file, cwd=tmp_path)
    assert done.returncode == 1
    assert "FAILED  VAE: reconstructions leave [-1, 1]" in done.stdout
    assert done.stderr == ""


DEFECT = """
class Bright(EarVAE):
    def decode(self, z):
        return 3 + super().decode(z)


EarVAE = Bright
"""


def test_weights_of_vgg_that_are_damaged_are_one_line(tmp_path):
    """Not a failed check: whoever names a file wants that file."""
    (tmp_path / "vgg.pth").write_bytes(b"no weights")
    for name in ("vgg.pth", "gone.pth"):
        done = run(SCRIPT, *TINY.split(), "--vgg_weights", name, cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: ")
        assert name in done.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [("--image_size 100", "--image_size 100"), ("--freeze_layers -1", "--freeze_layers -1"),
     ("--sam_image_size 100", "100")],
)  # fmt: skip
def test_mistakes_are_one_line(check, flags, text):
    with pytest.raises(UserError, match=text) as caught:
        check(*flags.split())
    assert "\n" not in str(caught.value)


def test_a_sam_that_cannot_be_had_names_the_ways_out(tmp_path):
    done = run(SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    for text in ("facebook/sam-vit-base", "--sam_model", "--sam_config"):
        assert text in done.stderr


def test_the_commands_of_its_docstring_are_accepted():
    """The second one passes, with as many blocks frozen as there are."""
    script = load_script(SCRIPT)
    lines = [line.split("#")[0].split()[2:] for line in script.__doc__.splitlines() if "python ear_teacher" in line]
    assert len(lines) == 2
    assert [script.parse_args(line).sam_config for line in lines] == [None, "tiny"]
