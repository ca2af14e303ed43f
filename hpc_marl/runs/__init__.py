"""Runs: preparing, submitting, driving and talking to them."""
