"""One frozen file per version; they import nothing of riverq, so that a later riverq cannot change an old version."""
