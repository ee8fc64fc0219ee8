"""What data can tell about a model before anything is changed."""
