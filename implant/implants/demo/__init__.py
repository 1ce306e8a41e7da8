"""Drawn implants with known sizes. Only make_demo_data.py imports this package."""
