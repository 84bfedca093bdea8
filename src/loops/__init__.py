"""Training, distillation and evaluation as loops over tensors, without disk or tracking: what stages and the API share."""
