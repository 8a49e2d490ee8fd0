"""An index, searched for the clips of the dataset that is served."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdistill.errors import SearchError
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.search.encoders import check_provenance
from avdistill.search.forms import open_index
from avdistill.search.index import Index
from avdistill.search.schema import Hit, quoted
from avdistill.server.catalog import Catalog
from avdistill.teachers.huggingface import load_text_encoder

HITS = 24
_NEIGHBORS = 8


@dataclass(frozen=True)
class Query:
    """What is searched for; one of `clip`, `label` and `text`, or none for an upload.

    Attributes:
        clip: id of a clip.
        label: name of a class.
        text: words, where the server has an encoder of them.
        space: of the query; "" is the only one.
        target: the space that is searched, which shares the vector space of `space`; "" is `space` itself. Not for
            words and labels.
        where: a condition on the clips.
        k: number of clips to find.
    """

    clip: str = ""
    label: str = ""
    text: str = ""
    space: str = ""
    target: str = ""
    where: str = ""
    k: int = HITS


class Searcher:
    """An index, of which the clips of one dataset are shown."""

    def __init__(self, location: str, catalog: Catalog, text_encoder: str | None = None) -> None:
        """Open the index.

        Args:
            location: of the index.
            catalog: the clips that are served.
            text_encoder: as in `avdistill search --encoder`, for words; None where there is none.

        Raises:
            SearchError: it is not an index of this dataset, it is stale, or none of its spaces is of the text encoder.
            TeacherError: the text encoder cannot be loaded.
        """
        self.index: Index = open_index(location)
        self.catalog, checksum = catalog, catalog.dataset.checksum
        sources = self.index.description.sources
        source = next((each for each in sources if each.checksum == checksum), None)
        if source is None:
            raise SearchError(f"{location}: expected an index of {catalog.dataset.folder}, found one of other datasets")
        self._source = source.name
        self._restriction = "" if len(sources) == 1 else f"dataset = {quoted(source.name)}"

        self.text_spaces: list[str] = []
        if text_encoder is not None:
            self._text = load_text_encoder(text_encoder)
            for name, space in self.index.spaces.items():
                with suppress(SearchError):
                    check_provenance(space, self._text.provenance, text_encoder)
                    self.text_spaces.append(name)
            if not self.text_spaces:
                raise SearchError(f"{location}: expected a space that {text_encoder} computed, found none")

    @property
    def spaces(self) -> list[str]:
        """Names of all spaces."""
        return list(self.index.spaces)

    @property
    def file_spaces(self) -> list[str]:
        """Names of the spaces whose network embeds files: those of students."""
        return [name for name, space in self.index.spaces.items() if space.model]

    @property
    def shared_spaces(self) -> list[str]:
        """Names of the spaces that share a vector space with another: audio finds video there."""
        count = Counter(space.shared for space in self.index.spaces.values())
        return [name for name, space in self.index.spaces.items() if count[space.shared] > 1]

    def find(self, query: Query) -> list[Hit]:
        """The clips nearest to a clip, a label or a text. Raises AvdistillError."""
        options = self._options(query)
        if query.target and not query.clip:
            raise SearchError("target: expected with a clip or a file, found it with words or a label")
        if query.text:
            space = query.space or next(iter(self.text_spaces), "")
            if space not in self.text_spaces:
                raise SearchError(f"text: expected a space of an encoder of texts, found {space!r:.80}")
            return self.index.search_vector(self._text.embed(query.text), **options | {"space": space})
        if query.clip:
            return self.index.search_clip(query.clip, dataset=self._source, target=query.target or None, **options)
        return self.index.search_label(query.label, **options)

    def find_file(self, file: Path, query: Query, reader: IsolatedReader) -> list[Hit]:
        """The clips nearest to a file. Raises AvdistillError."""
        return self.index.search_file(file, reader=reader, target=query.target or None, **self._options(query))

    def neighbors(self, clip: str) -> dict[str, list[dict[str, Any]]]:
        """Space -> the nearest clips, of the spaces in which a clip has a vector."""
        found = {}
        for space in self.spaces:
            try:
                found[space] = self.describe(self.find(Query(clip=clip, space=space, k=_NEIGHBORS)))
            except SearchError:
                continue
        return found

    def describe(self, hits: list[Hit]) -> list[dict[str, Any]]:
        """JSON-ready: what the library says of the clips, and their similarity."""
        rows = [(self.catalog.row(hit.clip), hit.score) for hit in hits]
        known = [(row, score) for row, score in rows if row is not None]
        described = self.catalog.describe([row for row, _ in known])
        return [clip | {"similarity": score} for clip, (_, score) in zip(described, known, strict=True)]

    def _options(self, query: Query) -> dict[str, Any]:
        conditions = [f"({query.where})"] if query.where else []
        conditions += [self._restriction] if self._restriction else []
        return {"space": query.space or None, "k": query.k, "where": " AND ".join(conditions) or None}
