"""The web page of `flowimg play`."""
