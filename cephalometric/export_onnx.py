"""Exports stage 1, decoding included, as an ONNX file for inference without PyTorch.

    python cephalometric/export_onnx.py --checkpoint runs/cephalometric/best --check PATIENT.png

Input: `image` float32 (batch, 1, H, W) in 0-1, letterboxed. Outputs: `points` (batch, K, 2) xy in input px and
`confidence` (batch, K); if trained, `measurements` (batch, M), lengths in input px, and `cvm_stage` (batch, S),
probabilities. The metadata of the file hold names, units and preprocessing. The file is written only if its outputs
agree with PyTorch. Needs pip install onnx onnxscript onnxruntime.
"""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[:2]]  # this folder, then the repository root

import torch
from torch import nn

from ceph.predictor import Predictor
from core.args import ArgumentParser, script
from core.console import make_console
from core.errors import UserError
from core.files import whole_file
from core.images import ImageError, read_image
from core.results import evaluation_folder
from core.windows import Letterbox

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
UNITS = {
    "points": "input px, xy, pixel centres at integers",
    "confidence": "height of the heatmap's peak, about 0-1",
    "measurements": "lengths in input px, angles in °, ratios in %",
    "cvm_stage": "probability",
}
PREPROCESSING = (
    "8-bit grey / 255, letterboxed: one scale s = min(W / width, H / height), antialiased if s < 1, centred with an "
    "offset of whole pixels, black padding. Input px u to picture px: (u - offset + 0.5) / s - 0.5. The model includes "
    "the normalisation."
)
TOLERANCE = 0.01  # points: px; other outputs: absolute, or relative to the largest value if that exceeds 1


def parse_args(argv=None):
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model folder: best/ of a training run")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="output file (default: landmarks.onnx beside best/)"
    )
    parser.add_argument("--opset", type=int, choices=range(18, 24), default=18, help="ONNX operator set version")
    parser.add_argument("--check", type=Path, nargs="+", default=[], metavar="IMAGE", help="more images to compare on")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"{' and '.join(missing)} missing: pip install {' '.join(PACKAGES)}")
    predictor = Predictor(args.checkpoint)
    args.output = args.output or evaluation_folder(args.checkpoint, "landmarks").with_suffix(".onnx")
    height, width = predictor.config["model"]["image_size"]
    pictures = [torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))]
    pictures += [letterboxed(file, (width, height)) for file in args.check]

    console = make_console()
    with whole_file(args.output) as file:
        write_onnx(predictor, file, args.opset)
        differences = largest_differences(predictor, file, pictures)
        console.print(f"largest difference from PyTorch, over 2 random and {len(args.check)} given pictures:")
        for name, difference in differences.items():
            console.print(f"  {name:<12} {difference:.1e} ({UNITS[name]})")
        if max(differences.values()) > TOLERANCE:
            raise UserError(f"{args.output} not written: over {TOLERANCE} off from PyTorch; try another --opset")
    console.print(f"written: {args.output} ({args.output.stat().st_size / 1e6:.0f} MB)", style="bold")


class Stage1(nn.Module):
    """Stage 1 of a predictor as a module, for the exporter."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.model, self.predictor = predictor.model, predictor

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images (B, 1, H, W) in 0-1 to the trained outputs among `UNITS`."""
        found, taught = self.predictor.frames(image), self.predictor.taught
        if not taught.all():
            kept = taught.nonzero()[0].tolist()
            found |= {name: found[name][:, kept] for name in ("points", "confidence")}
        return {name: found[name] for name in UNITS if name in found}


def write_onnx(predictor: Predictor, file: Path, opset: int = 18) -> None:
    """Exports stage 1 with decoding, for any batch size, with names, units and preprocessing as metadata."""
    config, anatomy, stage_1 = predictor.config, predictor.anatomy, Stage1(predictor).eval()
    images = torch.zeros(2, 1, *config["model"]["image_size"])  # batch size 2: the exporter takes 1 for a constant
    with torch.inference_mode():
        outputs = list(stage_1(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised inside the exporter
        program = torch.onnx.export(
            stage_1,
            (images,),
            input_names=["image"],
            output_names=outputs,
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # source lines and local paths
    facts = {"kind": config["kind"], "sigma": config["sigma"]} | anatomy.config()
    facts["schema"] = anatomy.schema.name  # its landmarks follow, without those that were not taught
    facts["landmarks"] = [name for name, known in zip(anatomy.names, predictor.taught, strict=True) if known]
    units = {name: UNITS[name] for name in outputs}
    facts |= {"image_size": config["model"]["image_size"], "units": units, "preprocessing": PREPROCESSING}
    facts |= {"notice": "Research use only: not a medical device."}
    for key, value in facts.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    program.save(str(file))


@torch.inference_mode()
def largest_differences(predictor: Predictor, file: Path, pictures: list[torch.Tensor]) -> dict[str, float]:
    """Output -> largest difference between PyTorch and ONNX Runtime over the batches `pictures` (B, 1, H, W), in the
    units of TOLERANCE."""
    import onnxruntime  # optional dependency, checked in `main`

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    stage_1, differences = Stage1(predictor).eval(), dict.fromkeys((x.name for x in session.get_outputs()), 0.0)
    for images in pictures:
        expected = stage_1(images)
        for name, found in zip(differences, session.run(list(differences), {"image": images.numpy()}), strict=True):
            difference = (torch.from_numpy(found) - expected[name]).abs().max().item()
            size = 1.0 if name == "points" else max(1.0, expected[name].abs().max().item())
            differences[name] = max(differences[name], difference / size)
    return differences


def letterboxed(file: Path, frame: tuple[int, int]) -> torch.Tensor:
    """Letterboxed picture (1, 1, H, W) in 0-1; `frame` is (width, height) in px. Raises UserError if it is
    unreadable."""
    try:
        pixels = read_image(file).pixels
    except ImageError as error:
        raise UserError(f"--check {error}") from error
    return torch.from_numpy(Letterbox(pixels.shape[::-1], frame).draw(pixels))[None, None].float() / 255


if __name__ == "__main__":
    script(main)
