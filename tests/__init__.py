"""riverq's tests: one folder per part of the library, helpers imported by their full name."""
