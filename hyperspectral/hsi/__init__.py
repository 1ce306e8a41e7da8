"""Hyperspectral cubes: files, statistics, masked autoencoders, features, probes."""
