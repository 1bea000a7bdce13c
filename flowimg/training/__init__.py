"""How a field is learned: the loop, the schedules, the moving average, the checkpoints."""
