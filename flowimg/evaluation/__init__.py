"""How good a run is, against what is known of its data."""
