"""Drawn heads with known ears. Only make_demo_data.py imports this package."""
