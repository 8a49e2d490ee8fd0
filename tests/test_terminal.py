"""Names from somebody else's files do not steer a terminal, and HDF5 files do not lead to others."""

import json
from pathlib import Path

import numpy as np
import pytest

from avdistill.commands.console import output, printable, progress_bar
from avdistill.errors import UnreadableFileError
from avdistill.integrations.gewu_lab.hdf5 import _images
from avdistill.progress import Progress

STEERING = "\x1b]0;title\x07\x1b[2J\x9b31m\r\b\x7f\u202egpj\u2066"


@pytest.mark.parametrize("as_json", [True, False])
def test_results_hold_no_control_characters(as_json, capsys):
    output({"id": STEERING}, [f"clip {STEERING}", "second"], as_json)
    text = capsys.readouterr().out
    assert not set(STEERING) & set(text) - set("0;title[2J31mgpj]")
    if as_json:
        assert json.loads(text) == {"id": STEERING}
    else:
        assert text.splitlines()[1] == "second"


def test_letters_of_any_language_stay():
    assert printable("héé 日本 עברית\nعربى") == "héé 日本 עברית\nعربى"


def test_a_bar_takes_any_name(capsys):
    with progress_bar("[/red]" + STEERING) as update:
        update(Progress(1, 2, "[/]" + STEERING))
    assert "\x07" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_images_in_another_hdf5_file_are_refused(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    other, path = tmp_path / "other.hdf5", tmp_path / "clip.hdf5"
    with h5py.File(other, "w") as file:
        file["video"] = np.array([b"secret"], "S6")
    with h5py.File(path, "w") as file:
        if kind == "external link":
            file["video"] = h5py.ExternalLink(str(other), "/video")
        elif kind == "soft link":
            file["far"] = h5py.ExternalLink(str(other), "/video")
            file["video"] = h5py.SoftLink("/far")
        elif kind == "external data":
            file.create_dataset("video", (1,), "S6", external=[(str(other), 0, 6)])
        else:
            layout = h5py.VirtualLayout((1,), "S6")
            layout[:] = h5py.VirtualSource(str(other), "video", (1,))
            file.create_virtual_dataset("video", layout)
    with pytest.raises(UnreadableFileError, match="in this file"):
        _images(Path(path))
