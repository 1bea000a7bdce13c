"""What a run is: strict, frozen settings, a file a subject; reading YAML and overrides."""
