"""Study and methods in; comparisons and rows out: leave-K-out, the random reference, LDS, boxes, tuning, verification.

Each experiment says which models are compared; one workspace does the work. It must not know a method or metric by
name, but for the floor.
"""
