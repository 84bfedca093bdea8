"""The process at work: its progress on the screen, its end by a signal, and others at its side."""
