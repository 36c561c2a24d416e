"""Training: one loop for every model and every launcher."""
