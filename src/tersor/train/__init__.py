"""Fine-tuning under masks and shared weights."""
