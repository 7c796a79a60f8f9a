"""Weights on disk: published models to trainable ones, runs to Hugging Face folders, strict loading."""
