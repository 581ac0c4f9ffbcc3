"""What is asked: one file a question, each a list of cells."""
