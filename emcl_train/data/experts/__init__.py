"""Features of experts: the files of CE, MMT and JSFusion, own ones, and the batches that are made of them."""
