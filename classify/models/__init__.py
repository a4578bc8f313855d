"""The networks that are compared: a classifier on a ViT encoder, and ResNets."""
