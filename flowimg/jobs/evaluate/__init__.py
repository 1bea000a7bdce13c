"""`flowimg evaluate`: scores of a run's samples against its data, with limits that they must keep, or in a sweep."""
