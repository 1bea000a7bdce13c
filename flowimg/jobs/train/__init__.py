"""`flowimg train`: from settings to a trained field, its checkpoints, metrics and pictures in the run's folder."""
