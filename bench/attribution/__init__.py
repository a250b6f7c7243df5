"""What attribution methods are made of: gradients, projections, Fisher matrices, unlearning, features.

Takes what a method may see (``AttributionContext``), gives parts of scores. It must not know the experiment: no
removal, no retraining, no results folder but through the context's cache.
"""
