"""Drawn chest CT volumes with known findings. Only make_demo_data.py imports this package."""
