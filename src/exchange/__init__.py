"""What others made: expert buffers and synthetic sets of other code, read without running any of theirs."""
