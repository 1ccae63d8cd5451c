"""From video files to results: one video (`segment`), then many (`plan`, `batch`)."""
