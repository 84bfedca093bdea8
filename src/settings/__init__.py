"""Settings: their types by section of params.yaml, how that file is read and checked, and runs resolved from it."""
