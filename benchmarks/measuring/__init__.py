"""What the benchmarks share: running trainings and peers as processes of their own, and printing tables."""
