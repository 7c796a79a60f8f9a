"""Pairs of answers for the objectives over pairs: ``wavalign pairs``."""
