"""Reports: what is left to say of a run or a sweep afterwards."""
