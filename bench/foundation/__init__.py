"""The ground floor: keyed randomness, digests, the machine and its threads, how progress is told.

Takes numbers and names, gives numbers and names. It must not know the field: no image, no model, no results folder.
"""
