"""What leaves the repository for other code, and what comes in from it."""
