from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curate import selection, shards, uids
from curate.errors import InputError
from curate.fetch.blur import blurred
from curate.pool import Pool, open_pool
from curate.stages import blurring, placing
from curate.stages.blurring import Faces, faces
from curate.uids import to_hex
from tests.pools import make_metadata, make_pool, make_selection, sample_of, uid_of
from tests.stages.test_subset import content, everything, made, samples

BOX = [[0.25, 0.25, 0.75, 0.75]]
TWO = [[0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]]
BLUR = Faces("metadata", blur=True, inject=False)

Boxes = list[list[Any]]


def boxed(shard: int, row: int) -> Boxes | None:
    """The faces in the pools of these tests: one sample has one, one two, one an empty list, the others none."""
    return {(0, 0): BOX, (0, 1): [], (1, 2): TWO}.get((shard, row))


def pool_of(tmp_path: Path, table: Any = boxed, **more: Any) -> Pool:
    """Two shards of three noisy pictures of 32 x 24; their tables have the boxes."""
    pool = make_pool(tmp_path / "pool", 2, 3, size=(32, 24), extra={"face_bboxes": table, **more})
    make_selection(pool, everything(2, 3))
    return pool


def rows(out: Path) -> dict[str, dict[str, Any]]:
    found = [pq.read_table(s.table).to_pylist() for s in open_pool(out).shards]
    return {row["uid"]: row for table in found for row in table}


def decoded(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def image_of(shard: int, row: int) -> bytes:
    return bytes(sample_of(shard, row, (32, 24))["image"])


def test_only_samples_with_faces_change(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    result = made(pool, tmp_path / "out", faces=BLUR)
    made(pool, tmp_path / "plain")
    assert (result.kept, result.blurred, result.failure) == (6, 2, None)
    plain = {key: members for _, key, members in samples(tmp_path / "plain")}
    told = rows(tmp_path / "out")
    for _, key, members in samples(tmp_path / "out"):
        row = told[key[:32]]
        at = next((s, r) for s in range(2) for r in range(3) if uid_of(s, r) == key[:32])
        changed = at in ((0, 0), (1, 2))
        assert (members == plain[key]) is not changed
        assert list(members) == ["jpg", "txt", "json"]
        assert row["blurred"] is changed
        assert row["stored_sha256"] == hashlib.sha256(members["jpg"]).hexdigest()
        assert row["stored_bytes"] == len(members["jpg"])
        assert row["sha256"] == sample_of(*at, (32, 24))["sha256"]
        if changed:
            boxes = boxed(*at)
            assert boxes is not None
            wanted = blurred(decoded(image_of(*at)), [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes])
            ok, encoded = cv2.imencode(".jpg", wanted, [int(cv2.IMWRITE_JPEG_QUALITY), 95])
            assert ok
            assert members["jpg"] == encoded.tobytes()
            assert json.loads(members["json"])["stored_sha256"] == row["stored_sha256"]
    assert json.loads((tmp_path / "out/subset.json").read_text())["made_of"]["faces"] == {
        "boxes": "metadata",
        "blur": True,
        "inject": False,
        "encoding": "jpg, quality 95",
    }
    card = (tmp_path / "out/README.md").read_text()
    assert "Faces are blurred in 2 images, which were encoded anew as JPEG of quality 95" in card
    assert "Faces are blurred" not in (tmp_path / "plain/README.md").read_text()


def test_shuffled_and_with_copies(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    make_selection(pool, [*everything(2, 3), uid_of(0, 0), uid_of(0, 1)])
    result = made(pool, tmp_path / "out", faces=BLUR, samples_per_shard=2, shuffle=True)
    made(pool, tmp_path / "plain", faces=BLUR)
    assert (result.samples, result.blurred) == (8, 3)
    plain, mixed = ({key: members for _, key, members in samples(tmp_path / name)} for name in ("plain", "out"))
    assert plain == mixed


def test_same_bytes_for_any_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of(tmp_path)
    made(pool, tmp_path / "one", faces=BLUR, samples_per_shard=2)
    monkeypatch.setattr("curate.stages.subset.PROCESSES_FROM", 0)
    made(pool, tmp_path / "two", faces=BLUR, samples_per_shard=2, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_boxes_of_metadata_are_joined_by_uid(tmp_path: Path) -> None:
    listed = [
        {"uid": uid_of(s, r), "url": "u", "text": "t", "face_bboxes": boxed(s, r) or []}
        for s in (1, 0)
        for r in range(3)
    ]
    make_metadata(tmp_path / "pool", listed)
    make_pool(tmp_path / "pool", 2, 3, size=(32, 24))
    pool = open_pool(tmp_path / "pool")
    make_selection(pool, everything(2, 3))
    assert made(pool, tmp_path / "out", faces=BLUR).blurred == 2
    assert [r["uid"] for r in rows(tmp_path / "out").values() if r["blurred"]] == [uid_of(0, 0), uid_of(1, 2)]


def test_boxes_of_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(tmp_path, lambda s, r: None)
    boxes = pa.table(
        {
            "uid": [uid_of(1, 1), "f" * 32, uid_of(0, 2)],
            "face_bboxes": pa.array([BOX, BOX, None], pa.list_(pa.list_(pa.float32()))),
        }
    )
    pq.write_table(boxes, tmp_path / "boxes.parquet")
    asked = faces(str(tmp_path / "boxes.parquet"), None)
    result = made(pool, tmp_path / "out", faces=asked)
    assert result.blurred == 1
    assert rows(tmp_path / "out")[uid_of(1, 1)]["blurred"]
    assert "4 samples are not in the list of faces: they are taken to have none" in caplog.text
    # another file under the same name makes another subset
    pq.write_table(boxes.slice(2), tmp_path / "boxes.parquet")
    assert made(pool, tmp_path / "out", faces=asked).blurred == 0


def test_boxes_are_written_into_the_json(tmp_path: Path) -> None:
    pool = pool_of(tmp_path)
    result = made(pool, tmp_path / "out", faces=faces(None, "metadata"))
    assert result.blurred is None
    made(pool, tmp_path / "plain")
    plain = {key: members for _, key, members in samples(tmp_path / "plain")}
    for _, key, members in samples(tmp_path / "out"):
        assert (members["jpg"], members["txt"]) == (plain[key]["jpg"], plain[key]["txt"])
        said, before = json.loads(members["json"]), json.loads(plain[key]["json"])
        wanted = {uid_of(0, 0): BOX, uid_of(1, 2): TWO}.get(key[:32])
        if wanted is None:
            assert members["json"] == plain[key]["json"]
        else:
            assert said == before | {"face_bboxes": wanted}
    assert "blurred" not in pq.read_schema(tmp_path / "out/shards/00000000.parquet").names
    assert "`train.py --blur_field`" in (tmp_path / "out/README.md").read_text()
    both = made(pool, tmp_path / "both", faces=faces("metadata", "metadata"))
    assert both.blurred == 2
    first = next(members for _, key, members in samples(tmp_path / "both") if key[:32] == uid_of(0, 0))
    assert json.loads(first["json"])["face_bboxes"] == BOX
    assert first["jpg"] != image_of(0, 0)


def test_a_sample_without_json_gets_one(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    with tarfile.open(tmp_path / "pool/some.tar", "w") as tar:
        for name, data in (("a.jpg", image_of(0, 0)), ("a.txt", b"a face")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    from curate.pool.adopt import adopt

    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    (uid,) = to_hex(pool.uids(pool.parts[0]))
    make_selection(pool, [uid])
    pq.write_table(pa.table({"uid": [uid], "face_bboxes": [BOX]}), tmp_path / "boxes.parquet")
    made(pool, tmp_path / "out", faces=faces(None, str(tmp_path / "boxes.parquet")))
    ((_, _, members),) = samples(tmp_path / "out")
    assert json.loads(members["json"]) == {"uid": uid, "face_bboxes": BOX}


# --- what cannot be blurred -------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_picture_that_does_not_decode_is_never_written(
    tmp_path: Path, shuffle: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of(tmp_path)
    path = pool.shards[1].tar
    data = bytearray(path.read_bytes())
    at = data.rindex(b"\xff\xd8")  # the third sample's picture
    data[at + 2 : at + 200] = bytes(198)
    path.write_bytes(data)
    make_selection(pool, [*everything(2, 3), uid_of(1, 2)])
    result = made(pool, tmp_path / "out", faces=BLUR, shuffle=shuffle, samples_per_shard=3)
    assert (result.kept, result.samples, result.blurred, result.missing) == (5, 5, 1, {"not_an_image": 1})
    assert result.failure is None
    assert "2 pictures could not be blurred, or given their boxes: they are left out" in caplog.text
    assert uid_of(1, 2) not in {key[:32] for _, key, _ in samples(tmp_path / "out")}
    row = rows(tmp_path / "out")[uid_of(1, 2)]
    assert (row["error_code"], row["status"], row["blurred"]) == ("not_an_image", "failed_to_resize", False)
    assert "no known image format" in row["error_message"]
    assert to_hex(np.load(tmp_path / "out/uids.npy")) == sorted(set(everything(2, 3)) - {uid_of(1, 2)})
    missing = pq.read_table(tmp_path / "out/missing.parquet").to_pylist()
    assert missing == [{"uid": uid_of(1, 2), "cause": "not_an_image"}]
    sizes = json.loads((tmp_path / "out/shards/sizes.json").read_text())
    assert sum(sizes.values()) == 5
    for tar in (tmp_path / "out/shards").glob("*.tar"):
        assert len(shards.read_index(tar)[0]) == sizes[tar.name]
        assert json.loads(tar.with_name(f"{tar.stem}_stats.json").read_text())["successes"] == sizes[tar.name]
    before = content(tmp_path / "out")
    again = made(pool, tmp_path / "out", faces=BLUR, shuffle=shuffle, samples_per_shard=3)
    assert (again.kept, again.missing) == (5, {"not_an_image": 1})
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize(
    "boxes",
    [[[0.1, 0.1, 0.5]], [[0.1, 0.1, 0.5, None]], [[0.1, 0.2, 0.3, 0.4], []], [[0.1, 0.1, 0.5, float("inf")]]],
)
def test_what_is_no_list_of_boxes_is_not_taken_for_no_faces(tmp_path: Path, boxes: Boxes) -> None:
    pool = pool_of(tmp_path, lambda s, r: boxes if (s, r) == (0, 1) else boxed(s, r) or [[0.0, 0.0, 0.0, 0.0]])
    result = made(pool, tmp_path / "out", faces=BLUR)
    assert result.missing == {"bad_metadata": 1}
    assert uid_of(0, 1) not in {key[:32] for _, key, _ in samples(tmp_path / "out")}


def test_boxes_without_a_pixel_change_nothing(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, lambda s, r: [[0.5, 0.5, 0.5, 0.5], [1.5, 0.0, 1.7, 1.0]])
    assert made(pool, tmp_path / "out", faces=BLUR).blurred == 0
    made(pool, tmp_path / "plain")
    assert list(samples(tmp_path / "out")) == list(samples(tmp_path / "plain"))


def test_boxes_in_pixels_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(tmp_path, lambda s, r: [[10.0, 4.0, 20.0, 9.0], *BOX] if (s, r) == (1, 1) else BOX)
    assert made(pool, tmp_path / "out", faces=BLUR).blurred == 6
    assert "samples with boxes outside of their pictures: 1;" in caplog.text
    assert "fractions of width and height" in caplog.text


def test_a_subset_without_a_single_picture_is_no_success(tmp_path: Path) -> None:
    result = made(pool_of(tmp_path, lambda s, r: [[0.1, 0.1, 0.5]]), tmp_path / "out", faces=BLUR)
    assert result.samples == 0
    assert result.failure is not None
    assert result.failure.exit_code == 3
    assert "none of its pictures could be blurred" in str(result.failure)


# --- turned pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("already", [False, True])
def test_boxes_turn_with_the_picture_that_was_turned_upright(tmp_path: Path, already: bool) -> None:
    """A list's boxes are those of the file; we store it upright, and a download that blurs turns the boxes too."""
    pool_of(tmp_path, lambda s, r: [[0.0, 0.0, 0.5, 0.25]], original_orientation=lambda s, r: 6 if r == 0 else 1)
    if already:
        for path in (tmp_path / "pool/shards/_receipts").glob("*.json"):
            raw = json.loads(path.read_text())
            raw["what"]["bbox_column"] = "face_bboxes"
            path.write_text(json.dumps(raw))
    made(open_pool(tmp_path / "pool"), tmp_path / "out", faces=faces(None, "metadata"))
    said = {key[:32]: json.loads(members["json"])["face_bboxes"] for _, key, members in samples(tmp_path / "out")}
    assert said[uid_of(0, 1)] == [[0.0, 0.0, 0.5, 0.25]]
    # six: the file's top is the picture's right side
    assert said[uid_of(0, 0)] == ([[0.0, 0.0, 0.5, 0.25]] if already else [[0.75, 0.0, 1.0, 0.5]])


def test_a_foreign_picture_with_an_orientation_is_stored_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.open(io.BytesIO(image_of(0, 0))).save(turned, "JPEG", exif=exif)
    (tmp_path / "pool").mkdir()
    with tarfile.open(tmp_path / "pool/some.tar", "w") as tar:
        for name, data in (("a.jpeg", turned.getvalue()), ("a.json", b'{"width": 32, "height": 24}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    from curate.pool.adopt import adopt

    pool = adopt(open_pool(tmp_path / "pool"), workers=0)
    (uid,) = to_hex(pool.uids(pool.parts[0]))
    make_selection(pool, [uid])
    pq.write_table(pa.table({"uid": [uid], "face_bboxes": [BOX]}), tmp_path / "boxes.parquet")
    made(pool, tmp_path / "out", faces=faces(str(tmp_path / "boxes.parquet"), None))
    ((_, _, members),) = samples(tmp_path / "out")
    assert list(members) == ["jpg", "json"]
    assert decoded(members["jpg"]).shape[:2] == (32, 24)
    assert json.loads(members["json"]) == {"width": 24, "height": 32}
    row = rows(tmp_path / "out")[uid]
    assert (row["width"], row["height"]) == (24, 32)


# --- what is refused --------------------------------------------------------------------------------------


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--blur-faces: .*no such file of boxes"):
        faces(str(tmp_path / "none.parquet"), None)
    with pytest.raises(InputError, match="is a folder"):
        faces(None, str(tmp_path))
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="must name the boxes of --blur-faces"):
        faces("metadata", str(tmp_path / "a"))
    assert faces(None, None) is None
    pool = make_pool(tmp_path / "pool", 1, 2)
    make_selection(pool, everything(1, 2))
    with pytest.raises(InputError, match="its metadata has no column 'face_bboxes'") as e:
        made(pool, tmp_path / "out", faces=BLUR)
    assert "--blur-faces FILE" in str(e.value.hint)
    pq.write_table(pa.table({"uid": ["x"], "boxes": [1]}), tmp_path / "a")
    with pytest.raises(InputError, match=r"has no column 'face_bboxes' \(found: uid, boxes\)"):
        made(pool, tmp_path / "out", faces=faces(str(tmp_path / "a"), None))
    pq.write_table(pa.table({"uid": ["x"], "face_bboxes": [BOX]}), tmp_path / "a")
    with pytest.raises(InputError, match="column 'uid': row 0: 'x' is not 32 hex digits"):
        made(pool, tmp_path / "out", faces=faces(str(tmp_path / "a"), None))
    assert not (tmp_path / "out").exists()
    assert selection.load(pool.layout, None).counts["kept"] == 2


# --- boxes in memory --------------------------------------------------------------------------------------


def test_boxes_of_some_samples_are_theirs() -> None:
    lists = [[], [[0.1, 0.2, 0.3, 0.4]], [], [[0.5] * 4, [0.25] * 4, [0.75] * 4], [[0.0] * 4]]
    boxes = blurring.Boxes(
        np.cumsum([len(each) for each in lists]),
        np.array([box for each in lists for box in each]),
        unlisted=0,
        of_tables=True,
    )
    for which in ([0, 1, 2, 3, 4], [3], [0], [4, 0, 3, 3, 1], []):
        some = boxes.of(np.array(which, dtype=np.int64))
        assert some.array().to_pylist() == [lists[at] for at in which]
        some.array().validate(full=True)
    first, second = (boxes.of(np.array(which)) for which in ([1, 0], [0, 1]))
    assert first.digest() != second.digest()
    assert first.digest() == boxes.of(np.array([1, 2])).digest()


def test_of_several_rows_of_a_uid_the_first_with_boxes_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blurring, "BATCH", 2)
    wanted = [uid_of(0, row) for row in range(3)]
    rows = [
        (wanted[2], [[0.3] * 4]),
        (wanted[0], []),
        (wanted[0], [[0.1] * 4, [0.2] * 4]),
        (wanted[0], [[0.9] * 4]),
        ("f" * 32, [[0.8] * 4]),
        (wanted[2], [[0.7] * 4]),
    ]
    table = {"uid": [uid for uid, _ in rows], blurring.FACES: [boxes for _, boxes in rows]}
    pq.write_table(pa.table(table), tmp_path / "faces.parquet")
    make_pool(tmp_path / "pool", 1, 3)
    pool = open_pool(tmp_path / "pool")
    pairs = uids.to_pairs(pa.array(sorted(wanted)))
    plan = placing.make_plan(pool, pairs, np.ones(3, dtype=np.int32))
    boxes = blurring.boxes_of(pool, plan, str(tmp_path / "faces.parquet"))
    found = dict(zip(uids.to_hex(plan.uids), boxes.array().to_pylist(), strict=True))
    assert found == {wanted[0]: [[0.1] * 4, [0.2] * 4], wanted[1]: [], wanted[2]: [[0.3] * 4]}
    assert boxes.unlisted == 1
