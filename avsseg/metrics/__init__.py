"""Metrics: AVSBench's own arithmetic, the strict protocol beside it, and the sounds that robustness tests put in."""
