"""One fleet with Go: scenarios in both directions, collected by `make test-interop` alone (RIVERQ_INTEROP=1)."""
