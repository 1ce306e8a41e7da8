"""Abnormalities on CT: volumes, slices, networks, evaluation. `labels.py` holds the subject."""
