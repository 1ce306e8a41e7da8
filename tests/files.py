"""Reading and writing of files in tests."""

import csv
import json

import h5py
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from hsi.files import H5_KEY


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def read_csv(file):
    with open(file, encoding="utf-8", newline="") as table:
        return list(csv.DictReader(table))


def write_csv(file, table):
    with open(file, "w", encoding="utf-8", newline="") as text:
        writer = csv.DictWriter(text, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def logged(folder):
    """Lines of a run's metrics.jsonl without `seconds`, which differ between runs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def write_cube(file, values, key=H5_KEY, **options):
    """Writes a hyperspectral cube with `options` of h5py, e.g. compression; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as store:
        store.create_dataset(key, data=np.asarray(values), **options)
    return file


def dicom(path, pixels, **attributes):
    """Writes pixels (H, W) of 12 bits as DICOM, with further header `attributes`; returns the path."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    for name, value in attributes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path
