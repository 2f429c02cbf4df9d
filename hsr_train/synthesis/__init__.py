"""Images composed from cut-outs and backgrounds, with labels: numpy and OpenCV, whatever trains on them.

From Python:

    bank = ObjectBank.read("cutouts", ["cup", "spoon"], cache_dir="cache")
    composer = Composer(bank, FolderBackgrounds.read("backgrounds", cache_dir="cache"), SyntheticConfig(), seed=0)
    image, boxes, classes, outlines = composer.compose(epoch=0, index=0)
"""

from hsr_train.synthesis.backgrounds import FolderBackgrounds, TrainingBackgrounds
from hsr_train.synthesis.bank import ObjectBank
from hsr_train.synthesis.composer import Composed, Composer
from hsr_train.synthesis.photos import Photo

__all__ = ["Composed", "Composer", "FolderBackgrounds", "ObjectBank", "Photo", "TrainingBackgrounds"]
