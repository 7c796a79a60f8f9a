"""A blind test of two models by people: plan of the trials, the page that asks, and what comes of the votes."""
