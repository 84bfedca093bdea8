"""Ground: parameters, errors, seeds, runtime. Imports nothing else of the package."""
