"""Lists of clips, custom ones and those of published datasets, read as `Annotation` rows."""

from avdistill.annotations.readers import read_annotations
from avdistill.annotations.schema import Annotation

__all__ = ["Annotation", "read_annotations"]
