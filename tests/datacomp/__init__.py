"""Our uid lists against those of DataComp's own code, byte for byte.

`pools` makes metadata folders that hold every boundary of the seven baselines, `assets` the small files that these
read (a language model, a WordNet, a list of synsets, centroids, ImageNet's vectors), `cases` says what is run on
which. `expected.json` holds what DataComp's code kept, written by `reference`, which takes a checkout of it.
"""
