"""Trials: naming, finding and reading what lies in a root directory."""
