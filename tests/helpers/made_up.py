"""A made-up copy of the JSRT data in its published layout."""

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from tcseg.data import CLASSES

IDS = ["JPCLN001", "JPCLN002", "JPCNN001", "JPCNN002"]


def made_up(number):
    """A smooth 64 x 64 picture and five overlapping boxes at 128 x 128."""
    picture = np.add.outer(np.arange(64) * 2, np.arange(64)) + number * 10
    picture[:16, :16], picture[48:, 48:] = 0, 255
    masks = np.zeros((5, 128, 128), bool)
    for c in range(5):
        masks[c, 20 + 8 * c : 60 + 10 * c, 10 + 6 * number : 70 + 9 * c] = True
    return picture.astype(np.uint8), masks


def write_tree(root):
    """Write a complete tree of four images."""
    (root / "images").mkdir()
    for number, name in enumerate(IDS):
        picture, masks = made_up(number)
        Image.fromarray(picture).save(root / "images" / f"{name}.png")
        for structure, mask in zip(CLASSES, masks, strict=True):
            fold = "fold1" if int(name[-3:]) % 2 else "fold2"
            folder = root / "scr" / fold / "masks" / structure
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.gif")


def mask_file(tree, name, structure="heart"):
    fold = "fold1" if int(name[-3:]) % 2 else "fold2"
    return tree / "scr" / fold / "masks" / structure / f"{name}.gif"


def write_dicom(path, values, **attributes):
    """Write a monochrome image of 16 bits as a DICOM file, as a digital radiograph."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = data.SeriesInstanceUID = data.FrameOfReferenceUID = generate_uid()
    data.PatientID = data.PatientName = "phantom"
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = ""
    data.StudyDate = data.StudyTime = data.StudyID = data.ReferringPhysicianName = ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "DX", 1, 1
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = values.shape[-2:]
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    for name, value in attributes.items():
        setattr(data, name, value)
    data.PixelData = values.astype("<u2").tobytes()
    data.save_as(path, enforce_file_format=True)


def enhanced(frames, by_frame=False):
    """Return attributes of a multi-frame file that says where each of its frames lies."""

    def item(**attributes):
        data = Dataset()
        for name, value in attributes.items():
            setattr(data, name, value)
        return [data]

    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    measures = item(PixelSpacing=[0.5, 0.5], SliceThickness=2, SpacingBetweenSlices=2)
    shared = item(PlaneOrientationSequence=orientation)
    groups = [
        item(
            PlanePositionSequence=item(ImagePositionPatient=[0, 0, 2 * k]),
            FrameContentSequence=item(DimensionIndexValues=[1, k + 1]),
        )[0]
        for k in range(frames)
    ]
    for group in groups if by_frame else shared:
        group.PixelMeasuresSequence = measures
    return {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
        "Modality": "CT",
        "SharedFunctionalGroupsSequence": shared,
        "PerFrameFunctionalGroupsSequence": groups,
    }
