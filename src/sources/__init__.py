"""Real images, whatever they come in: `reading` is the way in, the other modules know one form each."""
