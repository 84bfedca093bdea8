"""What MLflow is told: a stage writes a journal, and a courier, a process of its own, delivers it to the store."""
