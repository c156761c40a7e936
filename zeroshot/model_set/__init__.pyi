from .anchor_file import (
    Anchors as Anchors,
    Entry as Entry,
    read_anchors as read_anchors,
)
from .anchor_writer import AnchorWriter as AnchorWriter, write_anchors as write_anchors
from .availability import list_sets as list_sets
from .coupled_encoder import CoupledEncoder as CoupledEncoder
from .frame_encoder import ClipModels as ClipModels, FrameEncoder as FrameEncoder
from .model_set import ModelSet as ModelSet, resolve as resolve
from .spec import SetSpec as SetSpec, find_set as find_set, is_set as is_set
