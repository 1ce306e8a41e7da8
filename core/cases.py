"""One row a case, gathered from all processes, each case exactly once."""

import torch
from accelerate import Accelerator


class Cases:
    """Collects results of a validation loop. Every process adds its batches; `table` returns the whole.

    Loaders hand the last samples out twice to make the processes' shares equal, and metrics that count them twice are
    wrong by a little. Here every row carries its index in the data set, and the table has each index once.
    """

    def __init__(self, accelerator: Accelerator, size: int):
        self.accelerator, self.size = accelerator, size
        self._batches: list[dict[str, torch.Tensor]] = []

    def add(self, index: torch.Tensor, **columns: torch.Tensor) -> None:
        """`index` (B,): positions in the data set; `columns`: tensors (B, ...) of the same shapes in every process."""
        gathered = self.accelerator.gather({"index": index, **{k: v.detach().contiguous() for k, v in columns.items()}})
        self._batches.append({name: column.cpu() for name, column in gathered.items()})

    def table(self) -> dict[str, torch.Tensor]:
        """Columns (N, ...) in the order of the data set. Raises RuntimeError unless each of the N cases is there."""
        columns = {name: torch.cat([batch[name] for batch in self._batches]) for name in self._batches[0]}
        index = columns.pop("index")
        rows = {int(position): row for row, position in enumerate(index)}
        if sorted(rows) != list(range(self.size)):
            raise RuntimeError(f"{len(rows)} of {self.size} cases came back from the validation loop")
        order = torch.tensor([rows[position] for position in range(self.size)])
        return {name: column[order] for name, column in columns.items()}
