"""Evaluation on AVSBench's layout: the model over a split, its scores, and a report to look at."""
