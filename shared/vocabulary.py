"""The words that options, recipes and stores have in common, each said once.

A command line's choices, a recipe's values and the fields of an identity are these very types; a
choice that only one file knows stands in that file.
"""

from typing import Literal

# of images
Geometry = Literal["pad", "crop"]  # how an image becomes a square: padded, or its centre cut out
Interpolation = Literal["bicubic", "bilinear"]  # of the resize to the teacher's size

# of targets
# similarities at one grid; what gives them at any; and E_v itself, which can be asked later too
Encoding = Literal["matrix", "factors", "patches"]
# or attention for questions, or the embeddings of prompts, beside them
Stored = Literal["matrix", "factors", "patches", "maps", "texts"]
QueryMethod = Literal["grad-eclip", "maskclip", "clearclip", "sclip", "textspan"]
QueryHeads = Literal["published", "model"]  # of Grad-ECLIP: one over the full width, or the model's
Kind = Literal["targets", "maps", "texts"]  # what a namespace of a store holds
AttentionTarget = Literal["image", "question", "mixed"]  # what L_att teaches: E_a, a map, or both
Rotation = Literal["hadamard"]  # of the channels of `patches`, before they become int8
Precision = Literal["f16", "u8"]  # of what is stored
Features = Literal["block", "projected"]  # patches of the last block, or normed and projected
PoolingAttention = Literal["pooled", "none"]  # E_a: what pools the image attends to; or no E_a
Dtype = Literal["fp32", "bf16", "fp16"]  # the teacher's compute type
Engine = Literal["ranks", "ray"]  # who shares a build: ranks of torchrun (or one), or a Ray cluster
ExportForm = Literal["safetensors", "npz"]  # files that `cache export` writes
Notebook = Literal["unimed-l", "unimed-b", "biomedclip"]  # of the authors, one a teacher
Control = Literal["shuffled", "mean"]  # of a store: targets that are wrong on purpose

# of runs
WeightsDtype = Literal["auto", "fp32", "bf16", "fp16"]  # of a student; auto: as it is stored
Device = Literal["auto", "cpu", "cuda"]
Truncation = Literal["error", "answer"]  # of a sample that is too long: stop, or cut its answer
AttentionRows = Literal["question", "last"]  # whose attention over the image tokens L_att reads
