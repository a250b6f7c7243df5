"""For who writes a plugin: a template to begin with, a check of every promise, scores made elsewhere.

Takes a plugin, gives advice. Nothing of the harness may need it.
"""
