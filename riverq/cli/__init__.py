"""The command line, `riverq`: one module per family of commands."""
