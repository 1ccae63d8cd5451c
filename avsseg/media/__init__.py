"""Reading and writing video: everything that touches ffmpeg, and nothing that knows a model."""
