"""What is checked before a run: preflight, doctor, judges."""
