"""Cache of the features of frozen networks."""

import torch
from torch.utils.data import DataLoader, Dataset

from core.cases import Cases
from implants.crops import ImplantCrops


class CachedCrops(Dataset):
    """`crops` with `features` instead of `image` in its items between `fill` and `clear`.

    A training set has one set of features per view, used in turn by the epochs.
    """

    def __init__(self, crops: ImplantCrops):
        self.crops = crops
        self.features: dict[str, torch.Tensor] | None = None  # (views, N, …) each

    def __len__(self) -> int:
        return len(self.crops)

    def set_epoch(self, epoch: int) -> None:
        self.crops.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict:
        if self.features is None:
            return self.crops[index]
        view = self.crops.epoch % len(self.features["scale"])
        item = {name: values[view, index] for name, values in self.features.items() if not name.startswith("feature_")}
        features = {name.removeprefix("feature_"): values[view, index] for name, values in self.features.items()
                    if name.startswith("feature_")}  # fmt: skip
        return item | {"features": features, "index": index, "id": self.crops.records[index].id}

    @torch.no_grad()
    def fill(self, run, batch_size: int) -> None:
        """Computes the features of all cases and views with the model of the run; the ranks share the work."""
        model = run.accelerator.unwrap_model(run.model)
        epoch, tables = self.crops.epoch, []
        for view in range(self.crops.views or 1):
            self.set_epoch(view)
            loader = run.accelerator.prepare_data_loader(
                DataLoader(self.crops, batch_size, num_workers=run.args.num_workers)
            )
            cases = Cases(run.accelerator, len(self.crops))
            for batch in loader:
                with run.accelerator.autocast():
                    features = model.encode(batch.pop("image"))
                batch.pop("id")
                cases.add(batch.pop("index"), **batch, **{f"feature_{name}": x for name, x in features.items()})
            tables.append(cases.table())
        self.set_epoch(epoch)
        stacked = {name: torch.stack([table[name] for table in tables]) for name in tables[0]}
        self.features = {name: values.share_memory_() for name, values in stacked.items()}  # shared by all workers

    def clear(self) -> None:
        """Removes the features: items hold pictures again, augmented anew in each epoch."""
        self.features = self.crops.views = None
