"""What compression costs in the model's answers: ``python -m bench.quality``."""
