"""Results of a distributed validation loop: one row per case, each case exactly once."""

import torch
from accelerate import Accelerator


class Cases:
    """Collects the batches of all ranks in a validation loop over `size` cases; `table` returns one row per case.

    Distributed loaders repeat samples to give all ranks equal shares, which biases metrics. Here every row carries its
    index in the data set, and the table holds each index once.
    """

    def __init__(self, accelerator: Accelerator, size: int):
        self.accelerator, self.size = accelerator, size
        self._batches: list[dict[str, torch.Tensor]] = []

    def add(self, index: torch.Tensor, **columns: torch.Tensor) -> None:
        """Adds a batch: `index` (B,) in the data set, and `columns` (B, …) of the same shapes on all ranks."""
        gathered = self.accelerator.gather({"index": index, **{k: v.detach().contiguous() for k, v in columns.items()}})
        self._batches.append({name: column.cpu() for name, column in gathered.items()})

    def table(self) -> dict[str, torch.Tensor]:
        """Columns (N, …) in the order of the data set. Raises RuntimeError if one of the N cases is missing."""
        columns = {name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]}
        index = columns.pop("index")
        rows = {int(position): row for row, position in enumerate(index)}
        if sorted(rows) != list(range(self.size)):
            raise RuntimeError(f"the validation loop returned {len(rows)} of {self.size} cases")
        order = torch.tensor([rows[position] for position in range(self.size)])
        return {name: column[order] for name, column in columns.items()}
