"""Another subject: orthopaedic screws of other companies, longer than dental implants. Drawn;
`tests/all_projects/test_templates.py` trains a copy of the folder on it."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SUBJECT = "orthopaedic screws: other companies, models and sizes, and the drive as an auxiliary field"
MODELS = {"Nordschraube": ("Kortikalis", "Spongiosa"), "Testa": ("Lag", "Locking")}
DRIVES, MODALITY = ("hexagonal", "star"), "fluoroscopy"
COUNTS = {"train": 16, "val": 6, "test": 6}
LIMITS = "--length_limits 10 120 --diameter_limits 1 12"
TINY = "--image_size 32 --model_size tiny --no-pretrained --batch_size 4 --num_workers 0 --log_with none --epochs 1"
RECORDS = f"--train_json {{data}}/train.json --val_json {{data}}/val.json {TINY} --embedding_dim 16"
EMBEDDINGS = "--company_checkpoint {out}/company --model_checkpoint {out}/model"
COMMANDS = [
    f"train_classifier.py --target company --save_dir {{out}}/company {RECORDS}",
    f"train_classifier.py --target model --save_dir {{out}}/model {RECORDS}",
    f"train.py --save_dir {{out}}/run {RECORDS} {EMBEDDINGS} {LIMITS} --auxiliary drive --uncertainty",
    f"train.py --save_dir {{out}}/none {RECORDS} --embeddings none {LIMITS}",
    "evaluate.py --checkpoint {out}/run/best --compare {out}/none --test_json {data}/test.json --calibration_json "
    "{data}/val.json --level 0.5 --output {out}/evaluation --bootstrap 20 --num_workers 0",
    "predict.py --checkpoint {out}/run/best --input {data}/pictures --pixel_size 0.4 --output {out}/predictions",
    "tune.py --stage classifier --trials 2 --parallel 1 --pruner none --space model_size=tiny batch_size=4 --output "
    f"{{out}}/tune -- --target company {RECORDS.replace('--model_size tiny ', '').replace('--batch_size 4 ', '')}",
    "analyze_tuning_results.py --storage journal:{out}/tune/journal.log --output {out}/analysis",
]
FORBIDDEN = re.compile(  # makers of the demo data, and makers whose dental implants are on sale
    r"Alvento|Brakka|Corvane|Dromund|Eskilo|TissueLevel|dental|tooth|periapical|panoramic|Straumann|Nobel ?Biocare"
    r"|Astra ?Tech|Osstem|Dentium|Zimmer|BioHorizons|Camlog|MegaGen",
    re.IGNORECASE,
)


def draw(folder: Path) -> None:
    """Writes pictures/ and {train,val,test}.json."""
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True)
    for split, count in COUNTS.items():
        rows = []
        for number in range(count):
            company = list(MODELS)[number % 2]
            length, diameter = float(rng.choice([30, 45, 60])), float(rng.choice([3.5, 4.5, 6.5]))
            image = Image.fromarray(rng.integers(20, 60, (180, 60)).astype(np.uint8))
            pen, spacing = ImageDraw.Draw(image), 0.4
            width, height = diameter / spacing, length / spacing
            pen.rectangle([30 - width / 2, 15, 30 + width / 2, 15 + height], fill=170 + 40 * (number % 2))
            for y in np.arange(20, 15 + height, 6 + 3 * (number // 2 % 2)):
                pen.line([30 - width / 2, y, 30 + width / 2, y + 2], fill=90)
            name = f"pictures/{split}_{number}.png"
            image.save(folder / name)
            rows.append(
                {"image": name, "company": company, "model": MODELS[company][number // 2 % 2], "length": length,
                 "diameter": diameter, "patient_id": f"{split}{number // 2}", "pixel_spacing": spacing,
                 "modality": MODALITY, "drive": DRIVES[number % 2]}
            )  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
