"""How a trained field is used: seeds to noise, noise to data."""
