"""The ledger: requests for models in, observed models out, each trained once whoever asked.

An executor steps the trainings, here or in workers. It must not know why a model is wanted: no method, no K.
"""
