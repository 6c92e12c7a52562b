"""Torch begins here: split models, bottlenecks, training, export. Empty, so that the edge's tail needs no training extra."""
