"""The generative model: encoded data in; a trained model, its samples, losses and observations out.

One kind of model at every scale, made of diffusers parts. It must not know why a model is trained: no study, no
method, no removal beyond the list of images that a training leaves out.
"""
