"""The mathematics of flow matching: paths, couplings, times, the objective, solvers, randomness."""
