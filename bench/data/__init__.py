"""The embedded data sets and the word vectors that ship with the harness (see README.md)."""
