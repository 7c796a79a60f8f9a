"""Speech in and out of a model."""
