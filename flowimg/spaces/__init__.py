"""What x is: how it is stored, encoded, decoded and shown."""
