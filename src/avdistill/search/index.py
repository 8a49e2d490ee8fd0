"""`Index`: clips with their vectors, searched by cosine. Three forms: `exact`, `lance` and `qdrant`.

An index is a cache of datasets. It holds the vectors of several spaces (a student's, a teacher's), each a column of its
own, and what identifies a clip; neither frames nor audio. Vectors of different spaces are never compared.
"""

import os
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np

from avdistill.errors import ConfigError, SearchError
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.search.encoders import Encoder, check_provenance, embed_file, open_encoder
from avdistill.search.schema import COLUMNS, Hit, IndexDescription, Space, quoted, unit_rows
from avdistill.search.where import Condition, parse_where
from avdistill.teachers.huggingface import load_text_encoder


class Index(ABC):
    """Clips and their vectors, opened for searching (`open_index`).

    A form implements `search_vectors` and `vectors`.

    Attributes:
        location: folder or address.
        description: its sources and spaces.
    """

    def __init__(self, location: str, description: IndexDescription) -> None:
        self.location, self.description = location, description

    @property
    def spaces(self) -> dict[str, Space]:
        """By name."""
        return {space.name: space for space in self.description.spaces}

    @abstractmethod
    def search_vectors(
        self, vectors: np.ndarray, space: Space, *, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        """The k nearest clips of each of the vectors (Q, D), best first, among those that meet the condition.

        Clips without a vector in the space are not found.
        """

    @abstractmethod
    def vectors(self, space: Space, condition: Condition, *, most: int) -> tuple[list[tuple[str, str]], np.ndarray]:
        """(dataset, clip) and unit vectors (n, D) of at most `most` clips that meet the condition and have one."""

    def search_vector(self, vector: np.ndarray, space: str, *, k: int = 10, where: str | None = None) -> list[Hit]:
        """The clips nearest to a vector of a space.

        Args:
            vector: (D,), of any length above 0.
            space: name of a column.
            k: at most this many hits, at least 1.
            where: a condition (`search/where.py`); it holds for all hits, whose number it does not reduce.

        Raises:
            SearchError: no such space, or a vector that is not of it.
            ConfigError: `where` is no condition, or k below 1.
        """
        return self._search(np.asarray(vector), self.space(space), k, where)

    def search_clip(
        self,
        clip: str,
        *,
        dataset: str | None = None,
        space: str | None = None,
        target: str | None = None,
        k: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The clips nearest to a clip of the index, without itself.

        Args:
            clip: its id.
            dataset: name of its dataset, where several datasets have such an id.
            space: whose vector of the clip is taken; None where there is only one space.
            target: the column that is searched; it shares the vector space. None is `space` itself.
            k, where: as in `search_vector`.

        Raises:
            SearchError: no such clip or space, the clip has no vector there, or `target` is of another vector space.
        """
        from_space = self.space(space)
        in_space = self._target(from_space, target)
        condition = f"id = {quoted(clip)}" + (f" AND dataset = {quoted(dataset)}" if dataset else "")
        found, vectors = self.vectors(from_space, self._condition(condition), most=2)
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise SearchError(f"{self.location}: clip {clip!r}: expected one, found it in {names}; name the dataset")
        if not found:
            wanted = f"a clip {clip!r} with a vector in {from_space.name!r}"
            raise SearchError(f"{self.location}: expected {wanted}, found none")
        hits = self._search(vectors[0], in_space, k + 1, where)
        return [hit for hit in hits if (hit.dataset, hit.clip) != found[0]][:k]

    def search_file(
        self,
        file: str | os.PathLike[str],
        *,
        space: str | None = None,
        modality: Literal["audio", "video"] | None = None,
        target: str | None = None,
        encoder: Encoder | str | os.PathLike[str] | None = None,
        weights: str | os.PathLike[str] | None = None,
        k: int = 10,
        where: str | None = None,
        reader: IsolatedReader | None = None,
    ) -> list[Hit]:
        """The clips nearest to a media file, which is read and embedded as the clips were.

        Args:
            file: any video or audio file with the space's modality.
            space: whose network embeds the file; None where there is only one space (of the `modality`).
            modality: of the file that is used; None is that of the space.
            target: as in `search_clip`.
            encoder, weights: what `load_teacher` takes, for a space of stored features; a student needs none. An
                `Encoder` that is passed is used as it is (`search/shared.py` makes those of shared spaces).
            k, where: as in `search_vector`.
            reader: an open one that serves many files, or has other limits; None is one for this file.

        Raises:
            SearchError: no such space, or an encoder that did not compute it.
            TeacherError, CheckpointError: the encoder or student cannot be loaded.
            FileNotFoundError, MediaError: the file cannot be read, or lacks the modality.
        """
        from_space = self.space(space, modality)
        in_space = self._target(from_space, target)
        if not isinstance(encoder, Encoder):
            encoder = open_encoder(self.description, from_space, encoder, weights)
        return self._search(embed_file(encoder, file, reader=reader), in_space, k, where)

    def search_text(
        self,
        text: str,
        *,
        encoder: str | os.PathLike[str],
        space: str | None = None,
        k: int = 10,
        where: str | None = None,
    ) -> list[Hit]:
        """The clips nearest to a text, in a space of a joint encoder of text and images or audio (CLIP, CLAP).

        Args:
            text: words.
            encoder: the teacher that computed the space's vectors, `huggingface:<hub id or folder>`.
            space, k, where: as in `search_clip`.

        Raises:
            SearchError: no such space, or an encoder that did not compute it.
            TeacherError: the encoder cannot be loaded, or has no text.
        """
        in_space = self.space(space)
        text_encoder = load_text_encoder(os.fspath(encoder))
        check_provenance(in_space, text_encoder.provenance, os.fspath(encoder))
        return self._search(text_encoder.embed(text), in_space, k, where)

    def search_label(self, label: str, *, space: str | None = None, k: int = 10, where: str | None = None) -> list[Hit]:
        """The clips nearest to the mean direction of those that carry a label (at most 10,000 of them are averaged).

        Args:
            label: its name. The clips that carry it are found as well; `where="NOT labels = 'NAME'"` leaves them out.
            space, k, where: as in `search_clip`.

        Raises:
            SearchError: no clip with the label has a vector in the space.
        """
        in_space = self.space(space)
        _, vectors = self.vectors(in_space, self._condition(f"labels = {quoted(label)}"), most=10_000)
        if not len(vectors):
            raise SearchError(
                f"{self.location}: expected clips labeled {label!r} with a vector in {in_space.name!r}, found none"
            )
        return self._search(vectors.mean(0, dtype=np.float64), in_space, k, where)

    def space(self, name: str | None, modality: str | None = None) -> Space:
        """A space by its name, or the only one (of a modality). Raises SearchError where there is none, or several."""
        spaces = [space for space in self.description.spaces if modality in (None, space.modality)]
        if name is None and len(spaces) == 1:
            return spaces[0]
        of = "" if modality is None else f" of {modality}"
        known = ", ".join(space.name for space in spaces) or "none"
        if name is None:
            raise SearchError(f"{self.location}: expected one space{of}, found {known}; name one")
        found = next((space for space in spaces if space.name == name), None)
        if found is None:
            raise SearchError(f"{self.location}: no space {name!r}; found {known}{of}")
        return found

    def _target(self, space: Space, name: str | None) -> Space:
        target = space if name is None else self.space(name)
        if target.shared != space.shared:
            raise SearchError(
                f"{self.location}: spaces {space.name!r} and {target.name!r}: expected a common vector space, found "
                "two; a student trained by mnf_csc, crd or cmc shares one with its teacher, as a joint encoder does"
            )
        return target

    def _condition(self, where: str) -> Condition:
        return parse_where(where, COLUMNS)

    def _search(self, vector: np.ndarray, space: Space, k: int, where: str | None) -> list[Hit]:
        if k < 1:
            raise ConfigError(f"k: expected at least 1, found {k}")
        if vector.shape != (space.dim,):
            raise SearchError(f"space {space.name!r}: expected a vector of {space.dim} numbers, found {vector.shape}")
        unit = unit_rows(vector[None])
        if not unit.any():
            raise SearchError(f"space {space.name!r}: expected finite numbers other than 0 only, found none")
        condition = None if where is None else self._condition(where)
        return self.search_vectors(unit, space, k=k, condition=condition)[0]
