"""Data: verl's dataset of spoken dialogues, and what prepares it."""
