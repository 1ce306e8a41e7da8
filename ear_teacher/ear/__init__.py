"""Ears: manifests, the VAE, its latent space, the detector, and their evaluation."""
