"""A graph for other runtimes: written, opened where it will run, and told why it is not faster."""
