"""Datasets: AVSBench folders and rendered scenes."""
