"""What moves the weights: AdamW and Muon."""
