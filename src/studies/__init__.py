"""Studies of parameters, beside the pipeline: search, comparison, ablation."""
