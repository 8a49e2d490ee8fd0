"""The pages of the library: all clips as a grid, one clip, and its files."""

from dataclasses import fields, replace
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from avdistill.errors import DatasetError
from avdistill.reporting.clip_media import clip_items, frame_rate, waveform
from avdistill.server.catalog import Catalog, Filter
from avdistill.server.media import BusyError, ClipMedia
from avdistill.server.site import Site, with_query
from avdistill.server.timelines import timeline

_KEPT = {"cache-control": "private, max-age=86400"}
_CHOICES = {"labeled": ("yes", "no"), "notes": ("yes", "no"), "order": ("dataset", "mismatch")}
# Names that a browser suggests for the field of the label; more would make every page heavy.
_SUGGESTED_LABELS = 300
_STUDENTS_SHOWN = 5


def site_of(request: Request) -> Site:
    """What is served."""
    site: Site = request.app.state.site
    return site


def catalog_of(request: Request) -> Catalog:
    """The dataset's clips. Raises 404 without a dataset."""
    catalog = site_of(request).catalog
    if catalog is None:
        raise HTTPException(404, "this server was started without a dataset")
    return catalog


def clip_of(request: Request) -> int:
    """The row of the clip that an address names. Raises 404 for an unknown id."""
    name = request.path_params.get("clip") or request.query_params.get("id", "")
    row = catalog_of(request).row(name)
    if row is None:
        raise HTTPException(404, "clip: expected the id of a clip of the dataset, found another")
    return row


def filter_of(request: Request) -> Filter:
    """The filter of an address. Raises 400 for a value that it cannot have."""
    given = {f.name: request.query_params.get(f.name, "") for f in fields(Filter)}
    for name, known in _CHOICES.items():
        if given[name] not in ("", *known):
            raise HTTPException(400, f"{name}: expected {' or '.join(known)}, found another value")
    mismatch = given.pop("mismatch")
    which = Filter(**{**given, "order": given["order"] or "dataset"})  # type: ignore[arg-type]
    try:
        return replace(which, mismatch=float(mismatch)) if mismatch else which
    except ValueError:
        raise HTTPException(400, "mismatch: expected a number, found another value") from None


def number_of(request: Request, name: str, default: int, most: int) -> int:
    """A whole number of an address, at least 1. Raises 400 for anything else."""
    text = request.query_params.get(name, "") or str(default)
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= most:
        raise HTTPException(400, f"{name}: expected 1 to {most}, found another value")
    return int(text)


async def library(request: Request) -> HTMLResponse:
    """`/`: a page of clips."""
    site, catalog, which = site_of(request), catalog_of(request), filter_of(request)
    page = catalog.page(which, number_of(request, "page", 1, 10**9))
    values = vars(which) | {"order": "" if which.order == "dataset" else which.order}

    def address(number: int) -> str:
        return with_query("/", values | {"page": number if number > 1 else ""})

    return site.render(
        request,
        "library.html",
        title=f"{catalog.dataset.folder.resolve().name}: {page.total} clips",
        clips=catalog.describe(page.clips),
        page=page,
        address=address,
        which=which,
        splits=[(name, name) for name in catalog.splits],
        labels=catalog.dataset.classes[:_SUGGESTED_LABELS],
        scores=catalog.scores,
    )


async def clip(request: Request) -> HTMLResponse:
    """`/clip/ID`: one clip."""
    site, catalog, row = site_of(request), catalog_of(request), clip_of(request)
    said = await run_in_threadpool(details, site, catalog, row)
    described = catalog.describe_one(row)
    return site.render(request, "clip.html", title=described["id"], clip=described, scores=catalog.scores, **said)


def details(site: Site, catalog: Catalog, row: int) -> dict[str, Any]:
    """What only the page of a clip shows."""
    dataset, students = catalog.dataset, site.students
    frames, audio = clip_items(dataset, row)
    c = dataset.columns
    facts = {"file": c["path"][row], "source video": c["group"][row]}
    if frames is not None:
        rate = frame_rate(dataset, row, frames, audio)
        facts["frames"] = f"{len(frames)} of {frames.shape[2]} x {frames.shape[1]}, {rate:.4g} a second"
    if audio is not None:
        facts["audio"] = f"{len(audio) / dataset.sample_rate_hz:.2f} s at {dataset.sample_rate_hz} Hz"
    return {
        "facts": facts,
        "students": [
            {"name": name, "prediction": found.describe(), "timeline": timeline(found)}
            for name in students.names[:_STUDENTS_SHOWN]
            if (found := students.timeline(name, dataset, row)) is not None
        ],
        "wave": None if audio is None else waveform(audio, dataset.sample_rate_hz),
        "teachers": [each for name in dataset.teachers if (each := catalog.teachers.top(name, row)) is not None],
        "neighbors": {} if site.searcher is None else site.searcher.neighbors(str(catalog.ids[row])),
        "extra": dict(dataset.table["extra"][row].as_py() or ()),
    }


async def thumbnail(request: Request) -> Response:
    """`/media/thumbnail/ID`: a JPEG file."""
    path = await _made(catalog_of(request), _media(request).thumbnail, clip_of(request))
    return Response(await run_in_threadpool(path.read_bytes), media_type="image/jpeg", headers=_KEPT)


async def player(request: Request) -> Response:
    """`/media/player/ID`: a WebM file, in ranges of bytes."""
    path = await _made(catalog_of(request), _media(request).player, clip_of(request))
    if not path.stat().st_size:
        raise HTTPException(404, "clip: expected video or audio in the dataset, found neither")
    return FileResponse(path, media_type="video/webm", headers=_KEPT)


def _media(request: Request) -> ClipMedia:
    catalog_of(request)
    media = site_of(request).media
    assert media is not None
    return media


async def _made(catalog: Catalog, make: Any, row: int) -> Any:
    """A file of a clip. Raises 404 where the clip has no video, 503 where too much is asked for at once."""
    try:
        return await run_in_threadpool(make, row)
    except BusyError:
        raise HTTPException(503, "too many clips are being encoded; ask again", {"retry-after": "2"}) from None
    except DatasetError:
        if not catalog.dataset.columns["has_video"][row]:
            raise HTTPException(404, "clip: expected one with video, found one without") from None
        raise
