"""Rollouts: verl's agent loop, and what holds a response to its layout."""
