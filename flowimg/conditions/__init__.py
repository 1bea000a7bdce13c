"""What a field is given: from data, or from what a user typed, to a condition."""
