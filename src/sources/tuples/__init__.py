"""Sources of tuples, whose parts belong together: pictures, texts, sounds, vectors."""
