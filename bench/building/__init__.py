"""The scripts that made what ships: data sets, word vectors, the autoencoder, the probe, the list of queries.

Run by hand, from pinned sources; they are not part of the installed package. Nothing of the harness may need them.
"""
