"""What people do with the tokenizer and the language model: the command line. Read `cli.py` first."""
