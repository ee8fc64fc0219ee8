"""The file: container, sections, named tensors in and out."""
