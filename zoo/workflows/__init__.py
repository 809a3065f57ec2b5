"""One file per verb: what is read, written, timed and seeded is decided here."""
