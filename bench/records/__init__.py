"""What is kept: rows, artifacts, and the names of all files of a results folder.

Takes tensors, JSON and rows; writes them whole or not at all, checks them when it reads them. It must not know what
made them: no model, no method, no metric.
"""
