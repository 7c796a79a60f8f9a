"""The embedded default heard through an encoder: ``python -m wavalign_ext.models.ears.pocket`` builds it.

What any model needs to hear is in ``speech/encoders/`` and the folder above.
"""
