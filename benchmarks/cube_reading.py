"""Reading a hyperspectral cube with `read_cube`: contiguous HDF5 against gzip with the defaults of h5py.

    python benchmarks/cube_reading.py

Target: at least 25 times faster. The cube is a phantom of 500×500 px and 30 bands, float32, whose structure and noise
compress like recordings, unlike random numbers; gzip has level 4 and the default chunks. Both files hold the same
values, lie in the page cache, and are read alternately. `read_cube` also checks all values for NaN, which takes the
same time for both; the ratio of h5py alone is printed, too.
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "hyperspectral")]

import h5py
import numpy as np
from results import CPU, Result, show

from hsi.demo.phantom import draw
from hsi.files import H5_KEY, open_dataset, read_cube
from hsi.wavelengths import DEFAULT_WAVELENGTHS

TARGET, ROUNDS, SIZE = 25, 20, 500


def read_only(file: Path) -> np.ndarray:
    """The cube without checks of its values."""
    with open_dataset(file, H5_KEY) as dataset:
        return dataset[...]


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure() -> list[Result]:
    cube, _ = draw(np.random.default_rng(0), np.random.default_rng(1), True, False, SIZE, DEFAULT_WAVELENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.h5" for name in ("contiguous", "gzip")}
        with h5py.File(files["contiguous"], "w") as store:
            store.create_dataset(H5_KEY, data=cube)
        with h5py.File(files["gzip"], "w") as store:
            dataset = store.create_dataset(H5_KEY, data=cube, compression="gzip")
            layout = {"level": dataset.compression_opts, "chunks": dataset.chunks}
        for file in files.values():
            assert np.array_equal(read_cube(file), cube)  # also fills the page cache
        sizes = {name: round(file.stat().st_size / 1e6, 1) for name, file in files.items()}
        pairs = [(read, file) for read in (read_cube, read_only) for file in files.values()]
        rounds = np.array([[seconds(*pair) for pair in pairs] for _ in range(ROUNDS)])
    rounds = rounds.reshape(ROUNDS, 2, 2)  # (rounds, with or without checks, file)
    ratio, alone = np.median(rounds[..., 1] / rounds[..., 0], axis=0).round(1).tolist()
    details = {"ratio_of_h5py_alone": alone}
    milliseconds = np.median(1000 * rounds, axis=0).round(1).tolist()
    for name, times in zip(("read_cube", "h5py_alone"), milliseconds, strict=True):
        details[f"milliseconds_of_{name}"] = dict(zip(files, times, strict=True))
    details |= {"megabytes": sizes, "gzip": layout, "rounds": ROUNDS}
    details["machine"] = f"{CPU}, files in cache, HDF5 {h5py.version.hdf5_version}"
    return [Result("contiguous against gzip HDF5", ratio, f">= {TARGET}", "times faster", details)]


if __name__ == "__main__":
    show(measure())
