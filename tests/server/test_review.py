"""Reviews: what is answered is on the disk, two reviewers lose nothing, a kill loses nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.client import HTTPException

import pytest

from avdistill.dataset.decisions import DROP_AUDIO, KEEP, Decision, open_dataset, read_decisions, write_decisions
from avdistill.errors import AnnotationError
from avdistill.server.config import ServeConfig
from avdistill.server.review import Review
from support.audit_cases import LABELED, UNLABELED, changed
from support.live_server import Live, live

CLIPS = [*LABELED, *UNLABELED]
KINDS = {"yes": KEEP, "no": DROP_AUDIO}


@pytest.fixture
def review(taught, tmp_path):
    return Review(tmp_path / "decisions.csv", taught, CLIPS)


def decided(review):
    return {each.clip: each.text for each in read_decisions(review.path, review.dataset)}


def again(review):
    return Review(review.path, review.dataset, review.order)


def test_votes_become_decisions_that_are_on_the_disk(review):
    votes = dict(zip(CLIPS, ["yes", "no", "unsure"] * 5, strict=False))
    expected = {}
    for clip, vote in votes.items():
        review.vote(clip, vote, "anna")
        expected |= {clip: KINDS[vote]} if vote in KINDS else {}
        assert decided(review) == expected
    assert review.next_clips("anna") == []
    assert review.next_clips("ben") == CLIPS[:2]
    progress = again(review).progress("anna")
    assert (progress.reviewed, progress.total) == (len(CLIPS), len(CLIPS))
    assert progress.decided == sum(vote != "unsure" for vote in votes.values())


def test_undo_takes_back_vote_by_vote_also_after_a_restart(review):
    for clip in CLIPS[:3]:
        review.vote(clip, "no", "anna")
    review.vote(CLIPS[0], "yes", "anna")
    review = again(review)
    assert review.undo("ben") is None
    assert review.undo("anna") == CLIPS[0]
    assert decided(review) == dict.fromkeys(CLIPS[:3], DROP_AUDIO)
    assert review.undo("anna") == CLIPS[2]
    assert review.next_clips("anna", 1) == [CLIPS[2]]
    assert decided(again(review)) == dict.fromkeys(CLIPS[:2], DROP_AUDIO)


def test_the_last_vote_counts_and_agreement_is_counted(review):
    for by, votes in (("anna", "yes yes no unsure"), ("ben", "yes no no no")):
        for clip, vote in zip(CLIPS, votes.split(), strict=False):
            review.vote(clip, vote, by)
    assert decided(review) == dict(zip(CLIPS, [KEEP, DROP_AUDIO, DROP_AUDIO, DROP_AUDIO], strict=False))
    progress = review.progress("anna")
    assert (progress.shared, progress.agreed, progress.disagreements) == (3, 2, (CLIPS[1],))
    review.undo("ben")
    review.undo("ben")
    review.undo("ben")
    assert decided(review)[CLIPS[1]] == KEEP
    assert review.progress("ben").shared == 1


def test_earlier_decisions_stay_until_they_are_voted_on_and_come_back(review, tmp_path):
    old = [Decision(CLIPS[0], "relabel", ("class_2",), "audit"), Decision(CLIPS[5], "drop_clip", (), "audit")]
    write_decisions(review.path, old)
    review.vote(CLIPS[0], "yes", "anna")
    assert decided(review) == {CLIPS[0]: KEEP, CLIPS[5]: "drop_clip"}
    again(review).undo("anna")
    assert read_decisions(review.path, review.dataset) == old
    review.vote(CLIPS[5], "unsure", "anna")
    assert read_decisions(review.path, review.dataset) == old


def test_two_servers_on_one_file_lose_nothing(review):
    other = again(review)
    half = len(CLIPS) // 2

    def work(each, clips, by):
        for clip in clips:
            each.vote(clip, "no", by)

    threads = [
        threading.Thread(target=work, args=(review, CLIPS[:half], "anna")),
        threading.Thread(target=work, args=(other, CLIPS[half:], "ben")),
        threading.Thread(target=work, args=(other, CLIPS[:half], "carl")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decided(review) == dict.fromkeys(CLIPS, DROP_AUDIO)
    assert review.next_clips("anna", 1) == [CLIPS[half]]
    assert review.progress("anna").reviewers == other.progress("anna").reviewers == 3


@pytest.mark.parametrize("cut", range(1, 20))
def test_what_a_power_cut_leaves_of_the_last_lines_is_mended(review, cut):
    for clip in CLIPS[:3]:
        review.vote(clip, "no", "anna")
    os.truncate(review.path, review.path.stat().st_size - cut)
    os.utime(review.path, (0, 0))
    assert decided(again(review)) == dict.fromkeys(CLIPS[:3], DROP_AUDIO)
    with review.journal.open("ab") as file:
        file.write(b'{"clip": "train_')
    mended = again(review)
    mended.vote(CLIPS[3], "yes", "anna")
    assert decided(again(review))[CLIPS[3]] == KEEP


def test_a_hand_edited_table_stays(review):
    review.vote(CLIPS[0], "no", "anna")
    write_decisions(review.path, [Decision(CLIPS[0], KEEP, by="by hand")])
    assert decided(again(review)) == {CLIPS[0]: KEEP}


def test_files_that_are_no_decisions_are_refused_and_stay(review):
    review.path.write_text("id,label\n1,2\n")
    with pytest.raises(AnnotationError, match="expected the columns"):
        again(review)
    assert review.path.read_text() == "id,label\n1,2\n"


@pytest.mark.parametrize("by", ["", " ", "a\nb", "x" * 81])
def test_impossible_names_and_votes_are_refused(review, by):
    with pytest.raises(ValueError, match="by: expected a name"):
        review.vote(CLIPS[0], "yes", by)
    for clip, vote in ((CLIPS[0], "perhaps"), ("nothing", "yes"), (CLIPS[0], "undo")):
        with pytest.raises(ValueError, match="expected"):
            review.vote(clip, vote, "anna")
    assert not review.path.exists()


def test_ids_with_spaces_commas_and_newlines(taught, tmp_path):
    names = [" a ", "b,c", 'd"e', "f\ng", "=1+1", "Ünï ☃"]
    dataset = changed(taught, tmp_path / "dataset", {"id": dict(zip(CLIPS, names, strict=False))})
    review = Review(tmp_path / "decisions.csv", dataset, names)
    for name in names:
        review.vote(name, "no", "=anna")
    assert decided(again(review)) == dict.fromkeys(names, DROP_AUDIO)


# Through the server


def test_where_nothing_can_be_written_the_rest_is_served(served, tmp_path, caplog):
    dataset = changed(served[0], tmp_path / "dataset")
    (tmp_path / "dataset-decisions.csv.lock").mkdir()
    with live(ServeConfig(dataset=dataset.folder)) as server:
        assert server.ask("/").status == 200
        assert server.ask("/audit").status == server.ask("/api/review?by=a").status == 404
    assert "no review" in caplog.text
    with (
        pytest.raises(OSError, match="lock"),
        live(ServeConfig(dataset=dataset.folder, decisions=tmp_path / "dataset-decisions.csv")),
    ):
        pass


def test_votes_over_http(server):
    by = "http"
    first = server.ask(f"/api/review?by={by}").json["clip"]["id"]
    after = server.send_json("/api/votes", {"clip": first, "vote": "no", "by": by})
    assert after.status == 200
    assert after.json["clip"]["id"] != first
    assert after.json["progress"]["reviewed"] == 1
    assert f"{first},drop_audio,{by}" in server.ask("/api/decisions.csv").text
    back = server.send_json("/api/votes/undo", {"by": by}).json
    assert (back["clip"]["id"], back["progress"]["reviewed"]) == (first, 0)
    for value, status in (({"clip": first}, 400), ({"clip": "no", "vote": "no", "by": by}, 400), ([], 400)):
        assert server.send_json("/api/votes", value).status == status
    assert server.ask("/api/votes", "POST", b"{}").status == 415
    assert server.ask("/api/votes", "POST", b" " * 70_000, content_type="application/json").status == 413
    assert server.ask("/api/review?by=").status == 400


def test_kill_9_while_reviewing_loses_nothing_and_the_next_start_goes_on(served, tmp_path, warm_python):
    """Votes are sent until the server is killed; what it answered is in the file, and the next one continues."""
    path = tmp_path / "decisions.csv"
    answered: list[str] = []
    for round_ in range(2):
        with program(warm_python, served[0].folder, served[1], path) as (process, server):
            state = server.ask("/api/review?by=anna").json
            assert state["progress"]["reviewed"] in (len(answered), len(answered) + 1)
            killer = threading.Timer(0.1, process.kill)
            try:
                while clip := state["clip"]:
                    state = server.send_json("/api/votes", {"clip": clip["id"], "vote": "no", "by": "anna"}).json
                    answered.append(clip["id"])
                    if round_ == 0 and len(answered) == 3:
                        killer.start()
            except (OSError, HTTPException):
                assert round_ == 0
        rows = [each.clip for each in read_decisions(path, served[0])]
        assert set(answered) <= set(rows)
        assert len(rows) <= len(answered) + 1
    assert len(rows) == len(CLIPS)
    assert len(open_dataset(served[0].folder, path)) == len(served[0])


@contextmanager
def program(python, dataset, run, decisions):
    """`avdistill serve` as a program, and its address as it prints it."""
    words = ["serve", dataset, "--run", run, "--decisions", decisions, "--port", "0"]
    command = [sys.executable, "-m", "avdistill", *map(str, words)]
    with python.popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, Live(None, int(re.search(r"http://127.0.0.1:(\d+)/", process.stderr.readline())[1]))
        finally:
            process.kill()
