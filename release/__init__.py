"""What turns the source into what people install: the wheelhouse, the image, the kustomize base. The Makefile calls it; nothing
of it ships.
"""
