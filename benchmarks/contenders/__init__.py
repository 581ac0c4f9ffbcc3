"""What is measured: each contender is a child program that speaks the protocol of child.py."""
