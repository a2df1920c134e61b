"""Networks: blocks.py (parts), encoder.py, decoder.py."""
