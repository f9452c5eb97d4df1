"""What turns the source into what people install: the wheelhouse, the image, the manifests. The Makefile calls it; nothing
of it ships.
"""
