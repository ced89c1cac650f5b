"""Shapes as masks: COCO, LabelMe, CVAT and RTSTRUCT, each a small file."""

import json

import numpy as np
import pydicom
import pytest
from folders import load, save
from made_up import write_dicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from skimage.draw import polygon2mask

from tcseg.data import load_dataset
from tcseg.data.convert import convert
from tcseg.errors import DataError, Problems
from tcseg.io.outlines import add_inside
from tcseg.io.shapes import STRUCTURE_SET

SIZE = 64


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def inside(left, top, right, bottom):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top:bottom, left:right] = True
    return mask


def images(root, *names):
    for number, name in enumerate(names):
        save(root / name, np.random.default_rng(number).integers(0, 255, (SIZE, SIZE), np.uint8))


def masks(data):
    """By image and class, those of annotated images."""
    return {
        data.ids[i]: dict(
            zip(data.classes, data.target_batch([i])[0, :-1].numpy() > 0, strict=True)
        )
        for i in data.annotated
    }


def pairs(points):
    return [points[i : i + 2] for i in range(0, len(points), 2)]


# ---- outlines -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_outlines_are_those_of_another_library(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 50, (rng.integers(3, 30), 2))  # they cross themselves, and the edge
    mask = np.zeros((40, 37), bool)
    add_inside(mask, [corners])
    assert np.array_equal(mask, polygon2mask(mask.shape, corners[:, ::-1]))


def test_neighbours_share_no_pixel_and_holes_are_holes():
    left, right, both = np.zeros((3, 20, 20), bool)
    seam = [(8.0, 0.0), (11.0, 7.0), (8.0, 10.0)]
    add_inside(left, [[(2.0, 0.0), *seam, (2.0, 10.0)]])
    add_inside(right, [[*seam, (15.0, 10.0), (15.0, 0.0)]])
    add_inside(both, [[(2, 0), (15, 0), (15, 10), (2, 10)]])
    assert not (left & right).any()
    assert np.array_equal(left | right, both)
    assert both.sum() == 13 * 10
    ring = np.zeros((20, 20), bool)
    add_inside(ring, [[(2, 2), (12, 2), (12, 12), (2, 12)], [(5, 5), (5, 8), (8, 8), (8, 5)]])
    # The same in one outline, with a channel to the hole.
    channel = [(2, 2), (12, 2), (12, 12), (2, 12), (2, 2), (5.3, 5), (5.3, 8), (8, 8), (8, 5)]
    again = np.zeros((20, 20), bool)
    add_inside(again, [[*channel, (5.3, 5)]])
    assert ring.sum() == 100 - 9
    assert again.sum() == 100 - 6  # from 5.3 on


# ---- COCO -----------------------------------------------------------------------------------


def coco(**other):
    """Two structures that overlap, one of two parts, runs in both forms; a third image has none."""
    runs = [5 * SIZE + 3, 4, SIZE - 4, 4, SIZE * SIZE - 6 * SIZE - 7]
    shapes = [
        (7, 2, [box(10, 5, 20, 15), box(18, 10, 30, 20)]),
        (7, 1, [box(0, 0, 12, 8)]),
        (8, 1, {"size": [SIZE, SIZE], "counts": runs}),
        (8, 2, {"size": [SIZE, SIZE], "counts": text_of_runs(runs)}),
    ]
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": SIZE, "height": SIZE},
            {"id": 8, "file_name": "b.png", "width": SIZE, "height": SIZE},
            {"id": 9, "file_name": "c.png", "width": SIZE, "height": SIZE},
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(("unused", "cell", "nucleus"))],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "iscrowd": 0, "bbox": [], "segmentation": s}
            for n, (i, c, s) in enumerate(shapes)
        ],
    } | other


def text_of_runs(counts):
    """As pycocotools writes it."""
    text = ""
    for n, count in enumerate(counts):
        value, more = count - (counts[n - 2] if n > 2 else 0), True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr(48 + code + 32 * more)
    return text


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("annotations.json", "images"),
        ("annotations/instances.json", "images/train"),
        ("a/x.json", "a"),
    ],
)
def test_coco(tmp_path, place, folder):
    images(tmp_path / folder, "a.png", "b.png", "c.png")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text(json.dumps(coco()))
    data = load(tmp_path, SIZE)
    assert data.classes == ("cell", "nucleus")
    assert data.values is None
    found = masks(data)
    assert [name[-1] for name in found] == ["a", "b"]
    a, b = found.values()
    assert np.array_equal(a["nucleus"], inside(10, 5, 20, 15) | inside(18, 10, 30, 20))
    assert np.array_equal(a["cell"], inside(0, 0, 12, 8))
    # Runs go down columns: two of them, each four pixels from row 3 on.
    assert np.array_equal(b["cell"], inside(5, 3, 7, 7))
    assert np.array_equal(b["nucleus"], inside(5, 3, 7, 7))


def test_coco_names_in_folders(tmp_path):
    """Of images of one name that is meant which is beside; else it is not known."""
    images(tmp_path / "train", "a.png", "b.png")
    images(tmp_path / "test", "a.png", "b.png")
    for part in ("train", "test"):
        (tmp_path / part / "_annotations.coco.json").write_text(json.dumps(coco()))
    assert list(masks(load(tmp_path, SIZE))) == ["test/a", "test/b", "train/a", "train/b"]
    for part in ("train", "test"):
        (tmp_path / part / "_annotations.coco.json").unlink()
    (tmp_path / "all.json").write_text(json.dumps(coco()))
    with pytest.raises(DataError, match=r"'a.png', which may be .*test.* or .*train"):
        load(tmp_path, SIZE)
    names = [{"id": i, "file_name": f"other/{n}.png"} for i, n in ((7, "a"), (8, "b"))]
    (tmp_path / "all.json").write_text(json.dumps(coco(images=names)))
    with pytest.raises(DataError, match=r"annotates no image that is here; it names 'other/a.png'"):
        load(tmp_path, SIZE)


BAD = [
    (None, "truncated"),
    ({"images": 3}, "Expected `array`"),
    ({"categories": [{"id": 1}, {"id": 2, "name": "a"}]}, "must have names"),
    ({"categories": [{"id": i, "name": n} for i, n in ((1, "a"), (1, "b"), (2, "c"))]}, "an id to"),
    ({"annotations": [{"image_id": 70, "category_id": 1}]}, "image 70 and category 1"),
]
BAD_SHAPES = [
    ([], "a box alone is not a mask"),
    (None, "a box alone is not a mask"),
    ([[1, 2, 3]], "cannot reshape"),
    ([[1e12, 0, 0, 0, 0, 5]], "numbers below 1e"),
    ([["a"]], "Expected `float`"),
    ([[0, -1e8, 1, 1e8] * 70000], "crosses rows of pixels"),
    ({"size": [SIZE, SIZE], "counts": [0, 10**12]}, "runs are of 1000000000000 pixels"),
    ({"size": [SIZE, SIZE], "counts": [SIZE * SIZE + 1, -1]}, "runs are of"),
    ({"size": [SIZE, SIZE], "counts": []}, "runs are of 0 pixels"),
    ({"size": [10**6, 10**6], "counts": [10**12]}, "its size is"),
    ({"size": [SIZE, SIZE], "counts": "o" * 100000}, "not valid COCO run-length encoding"),
    ({"size": [SIZE, SIZE], "counts": "é"}, "not valid COCO run-length encoding"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_damaged_coco(tmp_path, change, words):
    images(tmp_path / "images", "a.png", "b.png")
    content = json.dumps(coco(**(change or {})))
    (tmp_path / "x.json").write_text(content if change else content[:-10])
    line(tmp_path, "x.json", words)


@pytest.mark.parametrize(("shape", "words"), BAD_SHAPES)
def test_damaged_shapes_of_coco(tmp_path, shape, words):
    images(tmp_path / "images", "a.png", "b.png")
    content = coco()
    content["annotations"][1]["segmentation"] = shape
    (tmp_path / "x.json").write_text(json.dumps(content))
    line(tmp_path, "x.json: 'cell' on a.png cannot be read", words)
    problems = Problems(collect=True)
    data = load_dataset("folder", root=tmp_path, size=SIZE, problems=problems)
    assert (len(problems.found), data.ids) == (1, ["b"])


def line(root, *words):
    with pytest.raises(DataError) as error:
        load(root, SIZE)
    assert "\n" not in str(error.value)
    for word in words:
        assert word.replace("`", "'") in str(error.value), str(error.value)


def test_shapes_on_another_size_or_beside_masks_of_values(tmp_path):
    images(tmp_path / "images", "a.png", "b.png")
    content = coco()
    content["images"][0]["width"] = 2 * SIZE
    (tmp_path / "x.json").write_text(json.dumps(content))
    line(tmp_path, "annotates 128 x 64 pixels, a.png has 64 x 64")
    images(tmp_path / "masks", "a.png")
    line(tmp_path, "both masks of values (a.png) and shapes (x.json)")
    (tmp_path / "y.json").write_text(json.dumps(coco()))
    line(tmp_path, "y.json annotates an image that already has shapes ('a.png')")


def test_other_json_is_none_of_ours(tmp_path):
    images(tmp_path / "images", "a.png", "b.png")
    images(tmp_path / "masks" / "cell", "a.png")
    for name, content in (("images/a", '{"EchoTime": NaN}'), ("x", "[1"), ("masks/cell/a", "{}")):
        (tmp_path / f"{name}.json").write_text(content)
    (tmp_path / "images" / "a.xml").write_text("<annotation>")
    assert load(tmp_path, SIZE).classes == ("cell",)


# ---- LabelMe and CVAT -----------------------------------------------------------------------


def labelme(*shapes):
    return json.dumps(
        {
            "version": "5.5.0",
            "flags": {},
            "shapes": [
                {"label": name, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
                for name, points, kind in shapes
            ],
            "imagePath": "..\\images\\a.png",
            "imageData": "iVBORw0KGgo=",
            "imageHeight": SIZE,
            "imageWidth": SIZE,
        }
    )


def disc(x, y, radius):
    rows, columns = np.indices((SIZE, SIZE)) + 0.5
    return (rows - y) ** 2 + (columns - x) ** 2 < radius**2


@pytest.mark.parametrize("folder", ["images", "masks", "masks/sub", "."])
def test_labelme(tmp_path, folder):
    images(tmp_path / ("images" if folder != "." else "."), "a.v1.png", "b.png", "c.png")
    (tmp_path / folder).mkdir(exist_ok=True, parents=True)
    shapes = (
        ("cell", pairs(box(10, 5, 20, 15)), "polygon"),
        ("cell", [[40, 30], [35, 20]], "rectangle"),
        ("nucleus", [[30, 30], [30, 40.3]], "circle"),
    )
    (tmp_path / folder / "a.v1.json").write_text(labelme(*shapes))
    (tmp_path / folder / "b.json").write_text(labelme())  # looked at, and nothing there
    found = masks(load(tmp_path, SIZE))
    assert [name.rpartition("/")[2] for name in found] == ["a.v1", "b"]
    a, b = found.values()
    assert np.array_equal(a["cell"], inside(10, 5, 20, 15) | inside(35, 20, 40, 30))
    assert np.array_equal(a["nucleus"], disc(30, 30, 10.3))
    assert not (b["cell"] | b["nucleus"]).any()


def test_no_shape_at_all(tmp_path):
    images(tmp_path / "images", "a.png")
    (tmp_path / "images" / "a.json").write_text(labelme())
    line(tmp_path, "marks anything in an image that is here")


def cvat(shapes, before=""):
    return (
        f'<?xml version="1.0" encoding="utf-8"?>{before}<annotations><version>1.1</version><meta>'
        f"<task><labels/></task></meta>"
        f'<image id="0" name="a.png" width="{SIZE}" height="{SIZE}">{shapes}</image>'
        f'<image id="1" name="b.png" width="{SIZE}" height="{SIZE}"></image></annotations>'
    )


def test_cvat(tmp_path):
    images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "annotations.xml").write_text(
        cvat(
            '<polygon label="cell" points="10,5;20,5;20,15;10,15" z_order="0"><attribute name="x">1'
            '</attribute></polygon><box label="cell" xtl="35" ytl="20" xbr="40.2" ybr="30"/>'
            '<ellipse label="nucleus" cx="30" cy="30" rx="10.3" ry="10.3"/><tag label="x"/>'
            '<mask label="ring" rle="0,4,2,1,1,4" left="60" top="2" width="4" height="3"/>'
        )
    )
    found = masks(load(tmp_path, SIZE))
    assert list(found) == ["a"]
    assert np.array_equal(found["a"]["cell"], inside(10, 5, 20, 15) | inside(35, 20, 40, 30))
    assert np.array_equal(found["a"]["nucleus"], disc(30, 30, 10.3))
    ring = inside(60, 2, 64, 5)
    ring[3, 60:62] = ring[3, 63] = False
    assert np.array_equal(found["a"]["ring"], ring)


BOMB = (
    "<!DOCTYPE x ["
    + "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20 if n else "x" * 1000}">' for n in range(9))
    + "]>"
)
BAD_CVAT = [
    (cvat('<box label="a" xtl="1"/>'), "'a' on a.png cannot be read (its corners must be numbers"),
    (cvat('<points label="a" points="1,2"/>'), "shape 'points' is not supported; use a polygon"),
    (cvat('<box label="a" rotation="9"/>'), "a rotated box is not supported"),
    (cvat('<polygon label="a" points="1,2;nan,3"/>'), "must be numbers"),
    (cvat('<mask label="a" left="0" top="0" width="999999999" height="9" rle="1"/>'), "beyond"),
    (cvat('<mask label="a" left="0" top="0" width="1" height="1" rle="2"/>'), "runs are of 2"),
    (cvat("<track/>"), "it annotates a video"),
    (cvat("")[:-5], "cannot be read (unclosed token"),
    (cvat("&e8;", BOMB), "it defines entities"),
    (cvat("&f;", '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'), "it defines entities"),
]


@pytest.mark.parametrize(("content", "words"), BAD_CVAT)
def test_damaged_cvat(tmp_path, content, words):
    images(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "annotations.xml").write_text(content)
    line(tmp_path, "annotations.xml", words)


# ---- RTSTRUCT -------------------------------------------------------------------------------

SPACING = (2.0, 0.5)  # of rows, of columns
CORNER = np.array([-20.0, 30.0, 5.0])
ACROSS, DOWN = np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0])  # sagittal
SLICES = 3


def in_patient(corners, number):
    """From columns and rows, whose pixels have their centres at whole numbers."""
    corner = CORNER + number * 3.0 * np.cross(ACROSS, DOWN)
    points = [corner + c * SPACING[1] * ACROSS + r * SPACING[0] * DOWN for c, r in pairs(corners)]
    return [f"{number:.4f}" for number in np.ravel(points)]


def item(**attributes):
    found = Dataset()
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


def structure_set(path, structures, instances, named):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = STRUCTURE_SET, "1.2.99"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listed = [item(ReferencedSOPInstanceUID=uid) for uid in instances]
    series = item(SeriesInstanceUID="1.2.3", ContourImageSequence=listed)
    data = item(
        SOPClassUID=STRUCTURE_SET,
        SOPInstanceUID="1.2.99",
        Modality="RTSTRUCT",
        ReferencedFrameOfReferenceSequence=[
            item(RTReferencedStudySequence=[item(RTReferencedSeriesSequence=[series])])
        ],
        StructureSetROISequence=[
            item(ROINumber=n, ROIName=name) for n, name in enumerate(structures)
        ],
        ROIContourSequence=[
            item(
                ReferencedROINumber=n,
                ContourSequence=[
                    item(
                        ContourGeometricType=kind,
                        ContourData=in_patient(corners, k),
                        **({"ContourImageSequence": [listed[k]]} if named else {}),
                    )
                    for k, kind, corners in contours
                ],
            )
            for n, contours in enumerate(structures.values())
        ],
    )
    data.file_meta = meta
    pydicom.dcmwrite(path, data, enforce_file_format=True)


@pytest.fixture
def series(tmp_path):
    instances = [f"1.2.7.{k}" for k in range(SLICES)]
    root = tmp_path / "in"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for k, name in enumerate("cab"):
        write_dicom(
            root / "images" / f"{name}.dcm",
            np.random.default_rng(k).integers(0, 2000, (SIZE, SIZE)),
            SOPInstanceUID=instances[k],
            SeriesInstanceUID="1.2.3",
            ImagePositionPatient=list(CORNER + k * 3.0 * np.cross(ACROSS, DOWN)),
            ImageOrientationPatient=[*ACROSS, *DOWN],
            PixelSpacing=list(SPACING),
        )
    return root, instances


STRUCTURES = {
    "GTV (1)": [
        (1, "CLOSED_PLANAR", box(9.5, 4.5, 29.5, 24.5)),
        (1, "CLOSED_PLANAR", box(14.5, 9.5, 19.5, 14.5)),  # a hole
        (1, "CLOSED_PLANAR", box(39.5, 9.5, 49.5, 14.5)),  # a second part
        (2, "CLOSED_PLANAR", box(9.5, 4.5, 29.5, 24.5)),
    ],
    "body": [(2, "CLOSED_PLANAR", box(0, 0, 64, 64)), (0, "POINT", [1, 1])],
    "marker": [(0, "POINT", [1, 1])],
}


@pytest.mark.parametrize("place", ["masks/rs.dcm", "images/rs.dcm", "masks/rs"])
@pytest.mark.parametrize("named", [True, False])
def test_structure_sets(series, place, named):
    root, instances = series
    structure_set(root / place, STRUCTURES, instances, named)
    data = load(root, SIZE)
    assert data.classes == ("GTV (1)", "body")
    found = masks(data)
    assert list(found) == ["c", "a", "b"]  # in the order of the slices
    ring = inside(10, 5, 30, 25) & ~inside(15, 10, 20, 15) | inside(40, 10, 50, 15)
    assert np.array_equal(found["a"]["GTV (1)"], ring)
    assert np.array_equal(found["b"]["GTV (1)"], inside(10, 5, 30, 25))
    assert found["b"]["body"].all()
    assert not found["c"]["GTV (1)"].any()
    convert(root, root.parent / "out")
    again = masks(load(root.parent / "out", SIZE))
    assert again.keys() == found.keys()
    assert all(np.array_equal(again[i][c], found[i][c]) for i in found for c in data.classes)


def test_structure_sets_that_do_not_fit(series):
    root, instances = series
    path = root / "masks" / "rs.dcm"
    for contours, words in (
        (
            [(1, "OPEN_PLANAR", box(1, 1, 5, 5))],
            "a contour of type OPEN_PLANAR, which is not closed",
        ),
        ([(1, "CLOSED_PLANAR", [1e11, 0, 0, 0, 0, 9])], "must be numbers below"),
    ):
        structure_set(path, {"GTV": contours}, instances, True)
        line(root, "rs.dcm", words)
    structure_set(path, STRUCTURES, ["1.5.5", "1.5.6", "1.5.7"], True)
    line(root, "rs.dcm annotates no image that is here; it names '1.5.")
    header = pydicom.dcmread(root / "images" / "c.dcm")
    del header.ImagePositionPatient
    header.save_as(root / "images" / "c.dcm")
    structure_set(path, STRUCTURES, instances, True)
    line(root, "c.dcm is not a slice that says where it lies")


def test_slices_and_structure_sets_in_one_folder_for_each_patient(series):
    root, instances = series
    structure_set(root / "images" / "rs.dcm", STRUCTURES, instances, True)
    (root / "masks").rmdir()
    (root / "images").rename(root / "P1")
    data = load(root, SIZE)
    assert (data.ids, data.annotated) == (["P1/c", "P1/a", "P1/b"], [0, 1, 2])
    assert data.target_batch([1])[0, 0].sum() == 20 * 20 - 5 * 5 + 10 * 5
