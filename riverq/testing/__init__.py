"""What applications and driver authors use in their own tests. Nothing in riverq imports it."""
