"""What flows between workers while they train: samples, parameters, inference. Imports no torch."""
