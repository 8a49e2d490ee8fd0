"""What the server has open: the dataset and what is made of it, and how a page is rendered."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import error_message, own_folder
from avdistill.reporting.page import render
from avdistill.server.catalog import Catalog, Filter
from avdistill.server.config import ServeConfig
from avdistill.server.jobs import Jobs
from avdistill.server.media import ClipMedia, Workspace
from avdistill.server.review import Review
from avdistill.server.run_files import expand
from avdistill.server.scores import newest_audit, read_scores
from avdistill.server.searcher import Searcher
from avdistill.server.students import Students, named

_log = logging.getLogger(__name__)


@dataclass
class Site:
    """Everything that is served.

    Attributes:
        config: what the server was started with.
        workspace: its temporary folder.
        catalog, media: of the dataset; None without one.
        review: None without a dataset, and where nothing can be written beside it.
        students: of the runs.
        studies: folders of studies.
        jobs: uploaded files; None where nothing takes any.
        searcher: an index; None without one.
        pages: (address, name) of the pages that have something to show.
        version: of the content, in the addresses of files that a browser keeps.
    """

    config: ServeConfig
    workspace: Workspace
    catalog: Catalog | None = None
    media: ClipMedia | None = None
    review: Review | None = None
    students: Students = field(default_factory=lambda: Students({}))
    studies: list[Path] = field(default_factory=list)
    jobs: Jobs | None = None
    searcher: Searcher | None = None
    pages: list[tuple[str, str]] = field(default_factory=list)
    version: str = ""

    def render(self, request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """A template of `reporting/templates/server` as a response."""
        known = {"pages": self.pages, "path": request.url.path, "clip_url": clip_url, "version": self.version}
        return HTMLResponse(render(f"server/{name}", **known, **values), status)

    def close(self) -> None:
        """End the work on uploads and remove the temporary folder."""
        if self.jobs is not None:
            self.jobs.close()
        self.workspace.close()


def open_site(config: ServeConfig) -> Site:
    """Open what is served. Raises AvdistillError where it cannot be."""
    site = Site(config, Workspace())
    try:
        runs, site.studies = expand(config.runs)
        if config.dataset is not None:
            _open_dataset(site, ClipDataset(config.dataset), runs)
        if config.index is not None and site.catalog is not None:
            site.searcher = Searcher(config.index, site.catalog, config.text_encoder)
            site.pages.insert(1, ("/search", "Search"))
        if config.runs:
            site.students = Students(named(runs))
            site.pages += [("/predict", "Predict"), ("/runs", "Runs")]
        if config.runs or site.searcher is not None:
            site.jobs = Jobs(site.workspace.folder / "uploads", config.limits)
    except BaseException:
        site.close()
        raise
    return site


def _open_dataset(site: Site, dataset: ClipDataset, runs: list[Path]) -> None:
    """The pages of a dataset."""
    config = site.config
    audit = newest_audit(dataset.folder, runs)
    site.catalog = Catalog(dataset, None if audit is None else read_scores(audit, dataset))
    site.media = ClipMedia(dataset, site.workspace.folder / "media", config.limits)
    site.version = dataset.checksum[:12]
    folder = dataset.folder.resolve()
    site.pages.append(("/", "Library"))
    try:
        decisions = config.decisions or own_folder(folder.parent, f"{folder.name}-decisions.csv")
        site.review = Review(decisions, dataset, _review_order(site.catalog))
    except OSError as error:
        if config.decisions is not None:
            raise
        _log.warning("serve: no review, which --decisions FILE makes possible: %s", error_message(error))
    else:
        site.pages.append(("/audit", "Audit"))


def _review_order(catalog: Catalog) -> list[str]:
    """Ids of the clips that an audit ranked, most suspicious first; without one, of those that can be watched."""
    if catalog.scores is None:
        c = catalog.dataset.columns
        rows = np.flatnonzero(c["has_video"].astype(bool) & c["has_audio"].astype(bool))
    else:
        rows = catalog.select(Filter(order="mismatch"))
        rows = rows[~np.isnan(catalog.scores.values[rows])]
    return [str(name) for name in catalog.ids[rows]]


def clip_url(start: str, clip: str) -> str:
    """The address of something of a clip: "/clip/" or "/media/player/", and the id as one part of the path.

    A browser would take the ids "." and ".." for folders.
    """
    return start + (f"?id={quote(clip, safe='')}" if clip in ("", ".", "..") else quote(clip, safe=""))


def with_query(path: str, values: Mapping[str, object]) -> str:
    """An address with those values that are not empty."""
    query = urlencode({name: value for name, value in values.items() if value not in ("", None)})
    return f"{path}?{query}" if query else path
