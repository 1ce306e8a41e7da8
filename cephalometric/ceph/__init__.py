"""Landmarks on lateral cephalograms: data sets, networks, evaluation. `anatomy.py` holds the subject."""
