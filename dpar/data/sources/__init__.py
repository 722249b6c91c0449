"""Where images come from: a folder, Parquet files or WebDataset tars."""

from dpar.data.sources.folder import FolderImages
from dpar.data.sources.parquet import ParquetImages
from dpar.data.sources.source import ImageSource, described
from dpar.data.sources.tar import TarImages
from dpar.errors import InputError

SOURCES: dict[str, type[ImageSource]] = {kind.kind: kind for kind in (FolderImages, ParquetImages, TarImages)}


def open_images(source: str, path: str, *, every_class: bool = True) -> ImageSource:
    """The images of a source: `folder`, `parquet` or `webdataset`.

    Args:
        path: folder, file or glob.
        every_class: a class folder without images is an error; held-out images may lack a class.

    Raises:
        InputError: nothing is there, or it is not what `source` says.
    """
    images = SOURCES[source].scan(path)
    if every_class and isinstance(images, FolderImages):
        images.expect_every_class()
    if not len(images):
        left = described(images.left_alone, "; left alone: ")
        raise InputError(f"{path} holds no images; add some, or correct the path in the experiment{left}")
    return images
