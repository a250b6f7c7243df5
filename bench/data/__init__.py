"""The data: images with captions, in memory or on disk, as they are and as the model sees them.

Takes files, gives ids, captions, images by index and a digest. It must not know the model: who encodes is handed in.
The data sets that ship with the project lie here too, with the scripts that made them (``build``).
"""
