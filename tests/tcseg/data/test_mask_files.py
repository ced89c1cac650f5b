"""What masks hold as people save them: palettes, transparency, objects, smoothed edges."""

import json
from unicodedata import normalize

import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from folders import SHAPES, load, picture, refused, save
from PIL import Image

from tcseg.cli import main
from tcseg.data import make_split
from tcseg.errors import DataError


def with_palette(path, indices, colours):
    """Save indices with the colours of some of them; all others are black."""
    palette = np.zeros((256, 3), int)
    for index, colour in colours.items():
        palette[index] = colour
    image = Image.fromarray(indices.astype("u1"), "L")
    image.putpalette(palette.ravel().tolist())
    image.save(path)


def discs(valued, white=255):
    """Masks of the disc alone."""
    for number in range(6):
        save(valued / "masks" / f"scan{number}.png", picture(number)[1].astype("u1") * white)
    return picture(1)[1]


@pytest.mark.parametrize("index", [1, 7, 251])
def test_white_of_a_palette_is_white(valued, index):
    disc = discs(valued)
    with_palette(valued / "masks" / "scan1.png", disc * index, {index: (255, 255, 255)})
    Image.fromarray(picture(2)[1]).save(valued / "masks" / "scan2.png")  # one bit a pixel
    data = load(valued)
    assert data.values == (255,)
    assert np.array_equal(data.target_batch([1])[0, 0].numpy().astype(bool), disc)
    assert data.target_batch([2])[0, 0].any()


def test_an_index_that_others_have_as_a_value_stays_one(valued):
    """As that of the seventh structure, which is white in the masks that `tcseg predict` writes."""
    disc = discs(valued, white=7)
    with_palette(valued / "masks" / "scan1.png", disc * 7, {7: (255,) * 3, 3: (9, 200, 9)})
    assert load(valued).values == (7,)
    discs(valued)
    (valued / "classes.txt").write_text("7 disc\n255 other\n")
    with_palette(valued / "masks" / "scan1.png", disc * 7, {7: (255,) * 3, 3: (9, 200, 9)})
    assert load(valued).target_batch([1])[0, :2].any(dim=(1, 2)).tolist() == [True, False]


def test_greys_of_a_palette_that_differs_from_file_to_file(valued):
    """Pillow numbers the greys of a GIF anew, those that occur: 1 and 5, or 5 alone."""
    expected = load(valued).masks
    for number in range(6):
        _, disc, square = picture(number)
        (valued / "masks" / f"scan{number}.png").unlink()
        values = np.where(square, 5, disc if number != 2 else 0).astype("u1")
        save(valued / "masks" / f"scan{number}.gif", values)
    data = load(valued)
    assert data.values == (1, 5)
    assert torch.equal(data.masks[:2], expected[:2])
    assert not data.target_batch([2])[0, 0].any()


def test_black_that_is_not_the_first_of_the_palette(valued):
    for number in range(6):
        disc = picture(number)[1]
        with_palette(valued / "masks" / f"scan{number}.png", ~disc, {0: (255, 255, 255)})
    data = load(valued)
    assert data.values == (255,)
    assert np.array_equal(data.target_batch([1])[0, 0].numpy().astype(bool), picture(1)[1])


@pytest.mark.parametrize("layout", ["by_class", "valued"])
@pytest.mark.parametrize("outside", [(255, 255, 255, 0), (0, 0, 0, 0), (9, 9, 9, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_the_region_may_be_what_is_opaque(request, layout, outside, mode):
    root = request.getfixturevalue(layout)
    disc = discs(root) if layout == "valued" else picture(1)[1]
    path = root / "masks" / ("disc" if layout == "by_class" else "") / "scan1.png"
    values = np.where(disc[..., None], (255, 255, 255, 255), outside).astype("u1")
    Image.fromarray(values).convert(mode).save(path)
    assert np.array_equal(load(root).target_batch([1])[0, 0].numpy().astype(bool), disc)


def test_one_structure_is_not_1_here_and_255_there(valued):
    discs(valued)
    save(valued / "masks" / "scan3.png", picture(3)[1].astype("u1"))
    refused(
        valued, "scan3.png marks with 1 what scan5.png marks with 255", "name both in classes.txt"
    )
    (valued / "classes.txt").write_text("1 one\n255 other\n")
    assert load(valued).classes == ("one", "other")


@pytest.mark.parametrize("count", [130, 255, 300])
def test_all_objects_of_instance_labels_count(by_class, count):
    labels = np.zeros((64, 64), "u2" if count > 255 else "u1")
    for number in range(count):
        y, x = divmod(number, 20)
        labels[4 * y : 4 * y + 3, 3 * x : 3 * x + 3] = number + 1
    save(by_class / "masks" / "disc" / "scan1.png", labels)
    found = load(by_class).target_batch([1])[0, 0].numpy().astype(bool)
    assert np.array_equal(found, labels > 0)


def test_the_noise_of_jpeg_is_not_marked(by_class):
    disc = picture(1)[1]
    for quality in (20, 60, 75, 95):
        image = Image.fromarray(disc.astype("u1") * 255)
        image.save(by_class / "masks" / "disc" / "scan1.jpg", quality=quality)
        (by_class / "masks" / "disc" / "scan1.png").unlink(missing_ok=True)
        found = load(by_class).target_batch([1])[0, 0].numpy().astype(bool)
        assert (found != disc).mean() < 0.01


def test_many_clean_structures_are_not_called_smoothed(valued):
    organs = np.arange(40 * 60).reshape(40, 60) // 180
    save(valued / "masks" / "scan0.png", organs.astype("u1"))
    with pytest.raises(DataError) as error:
        load(valued)
    assert "has 13 values beside 0" in str(error.value)
    assert "smoothed" not in str(error.value)
    (valued / "classes.txt").write_text("1 disc\n5 square\n* background\n")
    assert load(valued).classes == ("disc", "square")


def test_smoothed_edges_and_colours(valued):
    values = np.zeros((*SHAPES[0], 3), np.uint8)
    values[10:20, 10:20] = 200, 30, 30
    save(valued / "masks" / "scan0.png", values)
    refused(valued, "scan0.png is a colour picture (#000000, #c81e1e)", "a folder for")
    save(valued / "masks" / "scan0.png", np.arange(40 * 60).reshape(40, 60).astype("u1"))
    refused(valued, "scan0.png has 255 values beside 0", "edges are smoothed perhaps")


def test_smoothed_edges_do_no_harm_in_black_and_white(by_class):
    before = load(by_class).target_batch([1])[0, 0]
    _, disc, _ = picture(1)
    large = Image.fromarray(disc.astype("u1") * 255).resize((256, 256), Image.Resampling.NEAREST)
    large.resize((64, 64), Image.Resampling.LANCZOS).save(by_class / "masks" / "disc" / "scan1.png")
    after = load(by_class).target_batch([1])[0, 0]
    assert (before != after).float().mean() < 0.02


# ---- classes.txt ----------------------------------------------------------------------------

RED, GREEN = (200, 30, 30), (0, 255, 0)


def coloured(valued, kind="RGB"):
    """Masks with a red disc and a green square."""
    for number in range(6):
        _, disc, square = picture(number)
        values = np.zeros((*SHAPES[number], 3), "u1")
        values[disc], values[square] = RED, GREEN
        image = Image.fromarray(values).convert(kind, palette=Image.Palette.ADAPTIVE)
        image.save(valued / "masks" / f"scan{number}.png")


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize(
    "text",
    [
        "square #00ff00\n# a comment 1 2 3\ndisc 200 30 30\n",
        "#00FF00 square\n200 30 30 disc\n0 0 0 background\n",
    ],
)
def test_colours_have_names(valued, kind, text):
    expected = load(valued)
    coloured(valued, kind)
    (valued / "classes.txt").write_text(text)
    data = load(valued)
    assert (data.classes, data.values) == (("square", "disc"), (1, 2))
    assert torch.equal(data.target_batch([1])[0, [1, 0]], expected.target_batch([1])[0, :2])
    # Label maps, as `tcseg predict` writes them, hold the numbers of the lines.
    _, disc, square = picture(1)
    numbers = np.where(square, 1, 2 * disc)
    save(valued / "masks" / "scan1.png", numbers.astype("u1"))
    assert torch.equal(load(valued).masks, data.masks)
    with_palette(valued / "masks" / "scan1.png", numbers, {1: (1, 2, 3), 2: (4, 5, 6)})
    assert torch.equal(load(valued).masks, data.masks)


def test_colours_without_a_name_are_listed(valued):
    coloured(valued)
    refused(valued, "(#000000, #00ff00, #c81e1e)", "in classes.txt, as in 'liver #ff0000'")
    (valued / "classes.txt").write_text("square #00ff00")
    refused(valued, "has 1 colours that classes.txt does not name (#c81e1e)", "add a line")
    (valued / "classes.txt").write_text("square #00ff00\ndisc 200 30 300")
    refused(valued, "'200 30 300' is no colour")
    (valued / "classes.txt").write_text("square #00ff00\nbackground #c81e1e")
    assert load(valued).classes == ("square",)


def test_all_other_values_may_be_one_structure_or_none(valued):
    y, x = np.indices(SHAPES[0]) // 10
    labels = (6 * y + x).astype("u2")
    save(valued / "masks" / "scan0.png", labels)
    (valued / "classes.txt").write_text("* cell\n5 nucleus\n")
    data = load(valued)
    assert (data.classes, data.values) == (("cell", "nucleus"), (1, 5))
    shares = data.target_batch([0])[0, :, 10:53].float().mean(dim=(1, 2))
    assert shares.numpy() == pytest.approx([22 / 24, 1 / 24, 1 / 24], abs=0.02)
    _, disc, square = picture(1)
    found = data.target_batch([1])[0, :2].numpy().astype(bool)
    assert np.array_equal(found, [disc & ~square, square])
    (valued / "classes.txt").write_text("* background\n5 nucleus\n")
    assert load(valued).classes == ("nucleus",)


def test_objects_have_the_name_of_all_other_values(tmp_path):
    for name in "ab":
        save(tmp_path / "images" / f"{name}.png", picture(1)[0])
        for number, mask in enumerate(picture(1)[1:]):
            save(tmp_path / "masks" / name / f"{number}.png", mask)
    (tmp_path / "classes.txt").write_text("* nucleus")
    assert load(tmp_path).classes == ("nucleus",)


# ---- how they lie ---------------------------------------------------------------------------


def turned_pair(root, orientation, image_has=True, mask_has=True, side=64):
    """An image and its mask as a camera stores them, and the mask as it is seen."""
    seen = np.indices((side, 64)).sum(axis=0) < 50
    undo = np.rot90(seen, {3: 2, 6: 1, 8: -1}[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    for part, has in (("images", image_has), ("masks/disc", mask_has)):
        (root / part).mkdir(parents=True, exist_ok=True)
        stored = Image.fromarray((undo if has or part == "images" else seen).astype("u1") * 200)
        stored.save(root / part / "a.png", **({"exif": exif} if has else {}))
    return seen


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_mask_is_turned_as_its_image(tmp_path, orientation):
    seen = turned_pair(tmp_path, orientation)
    data = load(tmp_path)
    assert np.array_equal(data.images[0, 0].numpy() > 0, seen)
    assert np.array_equal(data.target_batch([0])[0, 0].numpy().astype(bool), seen)


@pytest.mark.parametrize(("image_has", "mask_has"), [(True, False), (False, True)])
@pytest.mark.parametrize("orientation", [3, 6])
def test_one_that_alone_is_turned_is_refused(tmp_path, orientation, image_has, mask_has):
    turned_pair(tmp_path, orientation, image_has, mask_has)
    refused(tmp_path, "a.png has no EXIF orientation, a.png has", "mogrify -auto-orient")


def test_a_mask_made_for_the_image_as_it_is_seen_is_taken(tmp_path):
    seen = turned_pair(tmp_path, 6, mask_has=False, side=32)
    assert np.array_equal(load(tmp_path).target_batch([0])[0, 0, 16:48].numpy().astype(bool), seen)
    Image.fromarray(np.rot90(seen)).save(tmp_path / "masks" / "disc" / "a.png")
    refused(tmp_path, "a.png has no EXIF orientation, a.png has", "mogrify -auto-orient")


def volumes(root, affines):
    for name, affine in affines.items():
        for part in ("images", "masks"):
            (root / part).mkdir(exist_ok=True)
            values = np.indices((20, 20, 20)).sum(axis=0) < 20
            nibabel.save(nibabel.Nifti1Image(values.astype("u1"), affine), root / part / name)


def test_volumes_cut_otherwise_than_the_rest_are_refused(tmp_path):
    axial, sagittal = np.eye(4), np.eye(4)[[2, 0, 1, 3]]
    volumes(tmp_path, {"a.nii": axial, "b.nii": axial, "c.nii": sagittal})
    refused(tmp_path, "1 volume (c.nii) run ASR in the patient", "a.nii RAS", "canonical")
    # Mirrored ones are told, not refused: structures may be alike on both sides.
    volumes(tmp_path, {"c.nii": np.diag([-1, 1, 1, 1])})
    assert len(load(tmp_path, size=32)) == 60
    result = CliRunner().invoke(
        main, ["data", "check", "--data", "folder", "--root", str(tmp_path)]
    )
    assert "axes in the patient: 1 of LAS; 2 of RAS" in result.output


# ---- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["by_class", "valued"])
def test_two_masks_of_one_name_are_refused(request, layout):
    root = request.getfixturevalue(layout)
    folder = root / "masks" / ("disc" if layout == "by_class" else "")
    Image.open(folder / "scan0.png").convert("L").save(folder / "scan0.gif")
    refused(root, "scan0.gif and ", "scan0.png have one name", "rename or remove one")


@pytest.mark.parametrize(("of_images", "of_masks"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_may_be_spelt_in_two_ways(tmp_path, of_images, of_masks):
    """As macOS and Linux do with accents."""
    image, disc, _ = picture(1)
    for name in ("Bräu", "Kölsch"):
        save(tmp_path / "images" / f"{normalize(of_images, name)}.png", image)
        save(tmp_path / "masks" / "Gefäß" / f"{normalize(of_masks, name)}.png", disc)
    data = load(tmp_path)
    assert (data.ids, data.annotated) == (["Bräu", "Kölsch"], [0, 1])
    # Also in the splits of a run that began before.
    parts = {"train": ["Bräu"], "validation": ["Kölsch"], "test": ["Kölsch"]}
    spelt = {part: [normalize("NFD", name) for name in names] for part, names in parts.items()}
    (tmp_path / "splits.json").write_text(json.dumps({"data": "folder", "splits": [spelt]}))
    assert make_split(data, 0, tmp_path / "splits.json").train == [0]
    for form in ("NFC", "NFD"):
        save(tmp_path / "masks" / normalize(form, "Gefäß") / "Kölsch.png", disc)
    refused(tmp_path, "have one name")


def test_classes_in_another_encoding(valued):
    (valued / "classes.txt").write_bytes(b"1 Gef\xe4\xdf\n")
    refused(valued, "classes.txt: is not UTF-8; save it as UTF-8")
