"""Clusters, images and services. Nothing here yet."""
