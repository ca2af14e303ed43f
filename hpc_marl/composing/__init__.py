"""Composing: from Hydra's YAML and overrides to a checked experiment."""
