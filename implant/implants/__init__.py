"""Implants on radiographs: records, crops, networks, evaluation, search."""
