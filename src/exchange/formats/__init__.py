"""The forms in which a synthetic set leaves the repository, a module each."""
