"""Names from photo features by counting: discriminant analysis over the taxa of a photo library, nothing trained."""

from train.photo_head.discriminant import Discriminant, Settings
from train.photo_head.library import PhotoLibrary
from train.photo_head.selection import select

__all__ = ["Discriminant", "PhotoLibrary", "Settings", "select"]
