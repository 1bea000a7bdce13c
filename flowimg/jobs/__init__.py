"""What a verb does: the one place where settings, data, fields, training and figures meet."""
