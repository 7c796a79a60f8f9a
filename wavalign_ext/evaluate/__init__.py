"""Is a model better, and does it still sound right: spoken answers to a set of questions, measures, intervals."""
