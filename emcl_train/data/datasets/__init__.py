"""One module for each data set: its name is the layout, and its `read` says what the files of that layout hold.

    def read(config: DataConfig) -> SplitFiles

A data set that can be made where it is absent has `make(config)` too. A module in this folder is a choice of
`--data.layout` without being named anywhere else; a function in `emcl_train/recipes.py` makes it a recipe.
"""
