"""SIFT descriptors of photographs, of near-duplicates only the first."""

from collections.abc import Iterable
from types import ModuleType

import numpy as np
from tqdm import tqdm

from datasets.extras import extra

LONGEST = 1_600  # pixels of a side; larger photographs are scaled down, noise is no feature
SHORTEST = 64  # icons and buttons are smaller
CONTRAST = 0.02  # half of SIFT's usual threshold: fainter corners count too
THUMB = 16  # pixels of a side of the grey thumbnails that near-duplicates are told by
ALIKE = 0.9  # correlation of two thumbnails above which one photograph is dropped
QUERY_SHARE = 10  # one photograph in so many is for queries


def opencv() -> ModuleType:
    """OpenCV; asked for before a long download, it is missed in time."""
    return extra("cv2", "opencv-python-headless")


def is_photo(path: str) -> bool:
    """Drawings, diagrams and screenshots are PNG as a rule."""
    return path.lower().endswith((".jpg", ".jpeg"))


def descriptors(images: Iterable[bytes]) -> "list[np.ndarray]":
    """An array (descriptors, 128) of u8 for each photograph, in their order."""
    sift = opencv().SIFT_create(contrastThreshold=CONTRAST)
    seen, found = np.empty((0, THUMB * THUMB), np.float32), []
    for data in tqdm(images, desc="SIFT", unit="photo", disable=None):
        image = _grey(data)
        if image is None or min(image.shape) < SHORTEST:
            continue
        thumb = _thumbnail(image)
        if (seen @ thumb > ALIKE).any():
            continue
        seen = np.concatenate([seen, thumb[None]])
        rows = sift.detectAndCompute(image, None)[1]
        if rows is not None:
            found.append(rows.astype(np.uint8))  # whole numbers up to 255 as they come
    return found


def split(photographs: "list[np.ndarray]") -> "tuple[np.ndarray, np.ndarray]":
    """(train, test), shuffled, no two rows the same; no photograph gives rows to both."""
    random = np.random.RandomState(0)
    order = random.permutation(len(photographs))
    asked = max(1, len(photographs) // QUERY_SHARE)
    rows = np.concatenate([photographs[i] for i in [*order[asked:], *order[:asked]]])
    border = sum(len(photographs[i]) for i in order[asked:])
    kept = np.unique(_bytes(rows), return_index=True)[1]
    kept = random.permutation(np.sort(kept))
    return rows[kept[kept < border]], rows[kept[kept >= border]]


def _grey(data):
    """The image in grey, scaled down to LONGEST; None where it cannot be read."""
    cv2 = opencv()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None or max(image.shape) <= LONGEST:
        return image
    scale = LONGEST / max(image.shape)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _thumbnail(image):
    """Of mean 0 and length 1, so that brightness and contrast do not count."""
    cv2 = opencv()
    thumb = cv2.resize(image, (THUMB, THUMB), interpolation=cv2.INTER_AREA).astype(np.float32)
    thumb = thumb.ravel() - thumb.mean()
    return thumb / max(np.linalg.norm(thumb), 1e-9)


def _bytes(rows):
    """Each row as one value that can be compared."""
    return rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel()
