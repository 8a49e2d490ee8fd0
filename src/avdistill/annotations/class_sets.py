"""Catalogs of classes in use: Kinetics-Sounds in four versions, UCF51, VGGSound; one list of names each.

Kinetics-Sounds are the classes of Kinetics that are recognizable both by video and by audio. Its 34 classes
(Arandjelović and Zisserman, "Look, Listen and Learn", ICCV 2017, arXiv 1705.08168, appendix A1) have names of a
Kinetics that was never published; authors replaced or left out what Kinetics-400 calls otherwise. The lists are from:

- `kinetics_sounds_31`: github.com/IBM/AdaMML, the authors' answer in issue 3;
- `kinetics_sounds_32`: github.com/pritamqu/CrissCross, the author's answer in issue 4 (31 and "strumming guitar");
- `kinetics_sounds_33`: github.com/shicaiwei123/ECCV2024-DMRNet, `KineticSound/class.txt`;
- `kinetics_sounds_34`: public code that quotes the appendix, twice the same; the paper itself was not available to us;
- `ucf51`: the classes of UCF101 whose videos have audio (`catalogs.py`);
- `vggsound`: github.com/hche11/VGGSound, `data/stat.csv` (CC BY 4.0, Chen, Xie, Vedaldi and Zisserman, ICASSP 2020),
  the same 309 names as in its test list.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Literal, get_args

from avdistill.annotations.catalogs import UCF51_CLASSES
from avdistill.annotations.schema import Annotation, annotation_error, truncate_repr

Catalog = Literal[
    "kinetics_sounds_31", "kinetics_sounds_32", "kinetics_sounds_33", "kinetics_sounds_34", "ucf51", "vggsound"
]
CATALOGS: tuple[Catalog, ...] = get_args(Catalog)


def class_set(name: Catalog) -> tuple[str, ...]:
    """The sorted names of a catalog's classes, as its dataset spells them.

    Raises:
        AnnotationError: no such catalog.
    """
    if name not in CATALOGS:
        raise annotation_error("catalog", f"one of {', '.join(CATALOGS)}", truncate_repr(name))
    if name == "ucf51":
        return UCF51_CLASSES
    text = files("avdistill.annotations").joinpath("class_sets", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def keep_class_set(annotations: Sequence[Annotation], name: Catalog) -> list[Annotation]:
    """The clips that have a label of the catalog, with those labels alone, spelled as there.

    Names are compared without case and with "_" as a space, because folders are often named so. How many of the classes
    do not occur is logged.

    Raises:
        AnnotationError: no such catalog, or no clip has one of its labels.
    """
    spelled = {_folded(label): label for label in class_set(name)}
    kept = []
    for each in annotations:
        labels = tuple(dict.fromkeys(spelled[_folded(label)] for label in each.labels if _folded(label) in spelled))
        if labels:
            kept.append(replace(each, labels=labels))
    if not kept:
        raise annotation_error(f"catalog {name}", f"clips with one of its {len(spelled)} labels", "none")
    if absent := sorted(set(spelled.values()) - {label for each in kept for label in each.labels}):
        first = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        logging.getLogger(__name__).info(
            "catalog %s: %d of its %d classes have no clip (%s)", name, len(absent), len(spelled), first
        )
    return kept


def _folded(label: str) -> str:
    return label.replace("_", " ").casefold()
