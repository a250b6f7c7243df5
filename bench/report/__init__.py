"""Rows in; tables, intervals, verdicts, pictures and pages out.

It reads records and draws; what it prints is a function of these alone. It must not train, score or retrain.
"""
