"""Input and output: artifacts on disk, sources of real images, tracking, progress, cost."""
