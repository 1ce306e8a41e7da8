"""Drawn retinas with known spectra. Only make_demo_data.py imports this package."""
