"""The language model over pyramids. Read model.py first, then layout.py."""
