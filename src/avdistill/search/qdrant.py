"""The Qdrant form (extra `qdrant`): a collection of a running server, at `http://host:port/name`.

The points are in a collection `name-<key>`, whose metadata holds the description; `name` is its alias, which is set
when it is whole. A key that the server asks for is read from the variable QDRANT_API_KEY.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from avdistill.config_io import encode, parse_json
from avdistill.errors import ConfigError, SearchError
from avdistill.fsio import error_message
from avdistill.progress import OnProgress, Progress
from avdistill.search.columns import Content, Part
from avdistill.search.index import Index
from avdistill.search.schema import COLUMNS, Hit, Space, checked_description, hit_of, key_of
from avdistill.search.where import Comparison, Condition, Group

if TYPE_CHECKING:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Condition as PointCondition
    from qdrant_client.models import Filter

# Points of one request: some megabytes.
_POINTS = 1000


class QdrantIndex(Index):
    """A collection of a Qdrant server."""

    def __init__(self, location: str) -> None:
        """Connect. Raises SearchError where there is no server, no index, a damaged one, or no client."""
        self._client, self._name = connect(location), collection_name(location)
        with _errors(location):
            if not self._client.collection_exists(self._name):
                raise SearchError(f"{location}: no index here, or one whose indexing was interrupted: index again")
            metadata = self._client.get_collection(self._name).config.metadata or {}
        try:
            super().__init__(location, checked_description(parse_json(metadata["description"])))
        except (ValueError, KeyError, TypeError) as error:
            raise SearchError(f"{location}: expected an index, found another collection: {error}") from error

    def search_vectors(
        self, vectors: np.ndarray, space: Space, *, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        """See `Index`. The condition comes before the search. Approximate where the server has built its graph."""
        found = []
        for vector in vectors:
            with _errors(self.location):
                points = self._client.query_points(
                    self._name,
                    query=vector.tolist(),
                    using=self._column(space),
                    query_filter=None if condition is None else to_filter(condition),
                    limit=k,
                ).points
            points.sort(key=lambda point: (-point.score, point.id))
            found.append([hit_of(_NO_VALUES | (point.payload or {}), point.score) for point in points])
        return found

    def vectors(self, space: Space, condition: Condition, *, most: int) -> tuple[list[tuple[str, str]], np.ndarray]:
        """See `Index`."""
        from qdrant_client import models

        column = self._column(space)
        there = models.HasVectorCondition(has_vector=column)
        chosen = models.Filter(must=[there, to_filter(condition)])
        with _errors(self.location):
            points, _ = self._client.scroll(self._name, scroll_filter=chosen, limit=most, with_vectors=[column])
        rows: list[Any] = [point.vector for point in points]
        names = [(str(point.payload["dataset"]), str(point.payload["id"])) for point in points if point.payload]
        return names, np.array([row[column] for row in rows], np.float32).reshape(-1, space.dim)

    def _column(self, space: Space) -> str:
        return _vector_name(self.description.spaces.index(space))


def write_qdrant(content: Content, location: str, on_progress: OnProgress | None = None) -> None:
    """Make the index, or go on where a killed call of the same content stopped; an older one is then removed.

    Raises:
        SearchError: no server answers, or it refuses; a collection that is no index has the name.
    """
    client, alias, description = connect(location), collection_name(location), content.description
    from qdrant_client import models

    name = f"{alias}-{key_of(description)}"
    with _errors(location):
        aliases = {each.alias_name: each.collection_name for each in client.get_aliases().aliases}
        if alias not in aliases and client.collection_exists(alias):
            raise SearchError(f"{location}: expected an index or a free name, found a collection; it is not replaced")
        if not client.collection_exists(name):
            client.create_collection(
                name,
                vectors_config={
                    _vector_name(i): models.VectorParams(size=space.dim, distance=models.Distance.COSINE)
                    for i, space in enumerate(description.spaces)
                },
                metadata={"description": json.dumps(encode(description))},
            )
            _index_payload(client, name)
        # Of the request that a kill interrupted the server may have kept any part: it is sent again.
        done = max(0, client.count(name, exact=True).count - _POINTS)
        for part in content.parts(done):
            points = list(_points(part))
            for first in range(0, len(points), _POINTS):
                client.upsert(name, points=points[first : first + _POINTS], wait=True)
            if on_progress is not None:
                on_progress(Progress(part.start + len(points), description.clips))
        # One operation on the server: who searches by the alias finds the old index or the new one.
        moved: list[Any] = []
        if alias in aliases:
            moved.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        created = models.CreateAlias(collection_name=name, alias_name=alias)
        moved.append(models.CreateAliasOperation(create_alias=created))
        client.update_collection_aliases(change_aliases_operations=moved)
        for other in client.get_collections().collections:
            if other.name.startswith(f"{alias}-") and len(other.name) == len(name) and other.name != name:
                client.delete_collection(other.name)


def _index_payload(client: "QdrantClient", name: str) -> None:
    """Let the server find the clips of a condition without reading all."""
    from qdrant_client.models import PayloadSchemaType

    types = {"text": PayloadSchemaType.KEYWORD, "texts": PayloadSchemaType.KEYWORD}
    types |= {"number": PayloadSchemaType.FLOAT, "boolean": PayloadSchemaType.BOOL}
    for column, kind in COLUMNS.items():
        client.create_payload_index(name, column, types[kind])


# A value that is missing is not in the payload: so the server knows it as empty.
_NO_VALUES = dict.fromkeys(COLUMNS)


def _points(part: Part) -> Iterator[Any]:
    from qdrant_client.models import PointStruct

    for i, row in enumerate(part.clips.to_pylist()):
        vectors = {_vector_name(n): rows[i].tolist() for n, rows in enumerate(part.vectors) if rows[i].any()}
        payload = {name: value for name, value in row.items() if value is not None}
        yield PointStruct(id=part.start + i, vector=vectors, payload=payload)


def to_filter(condition: Condition) -> "Filter":
    """The condition as Qdrant takes it. Raises ConfigError for an order of texts, which it does not know."""
    from qdrant_client.models import Filter

    if isinstance(condition, Group):
        parts: list[PointCondition] = [to_filter(part) for part in condition.parts]
        return Filter(must=parts) if condition.joined_by == "and" else Filter(should=parts)
    return _comparison_filter(condition)


def _comparison_filter(c: Comparison) -> "Filter":
    from qdrant_client import models

    empty: PointCondition = models.IsEmptyCondition(is_empty=models.PayloadField(key=c.column))
    if c.operator == "is null":
        return models.Filter(must=[empty])
    if c.operator == "is not null":
        return models.Filter(must_not=[empty])
    if c.operator in ("<", "<=", ">", ">="):
        if c.kind != "number":
            raise ConfigError(f"where: {c.column}: Qdrant compares texts by =, != and IN, found {c.operator}")
        bound = {{"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[c.operator]: float(c.values[0])}
        return models.Filter(must=[models.FieldCondition(key=c.column, range=models.Range(**bound))])
    found: list[PointCondition] = [_equals(c.column, value) for value in c.values]
    if c.operator in ("=", "in"):
        return models.Filter(should=found)
    return models.Filter(must_not=found if c.kind == "texts" else [*found, empty])


def _equals(column: str, value: str | float | bool) -> "PointCondition":
    from qdrant_client import models

    if isinstance(value, float):
        return models.FieldCondition(key=column, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=column, match=models.MatchValue(value=value))


def _vector_name(number: int) -> str:
    return f"vector_{number}"


def collection_name(location: str) -> str:
    """The name in `http://host:port/name`. Raises ConfigError where there is none."""
    name = urlsplit(location).path.strip("/")
    if not name or "/" in name:
        raise ConfigError(f"{location}: expected http://host:port/collection, found no name of a collection")
    return name


def connect(location: str) -> "QdrantClient":
    """A client of the server. Raises SearchError where the client is not installed."""
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise SearchError(f"{location}: qdrant-client is not installed: install the extra 'qdrant'") from None
    parts = urlsplit(location)
    url = f"{parts.scheme}://{parts.netloc}"
    # The check of versions would be a warning where the server does not answer, which is an error below.
    return QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=120, check_compatibility=False)


@contextmanager
def _errors(location: str) -> Iterator[None]:
    """What the client raises, as one line."""
    from qdrant_client.http.exceptions import ApiException

    try:
        yield
    except (SearchError, ConfigError):
        raise
    except (ApiException, OSError, ValueError, RuntimeError) as error:
        raise SearchError(f"{location}: the Qdrant server does not do it: {error_message(error):.200}") from error
