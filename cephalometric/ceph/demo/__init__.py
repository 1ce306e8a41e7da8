"""Drawn cephalograms with known landmarks. Only make_demo_data.py imports this package."""
