"""Other people's eyes: images and captions in, features of pretrained encoders out.

It knows where weights are had and whether they fit. It must not know what the features are for.
"""
