"""Our uid lists against those of DataComp's own code, byte for byte.

`pools` makes metadata folders (`metadata`) that hold every boundary of the seven baselines (`boundaries`), `assets`
the small files that these read (a language model, a WordNet, a list of synsets, centroids, ImageNet's vectors),
`cases` says what is run on which. `expected.json` holds what DataComp's code kept, with the versions it ran under;
it was written by `reference`, which takes a checkout of that code.
"""
