"""Train and evaluate video-text retrieval with EMCL on real video files. The command line is `emcl-train`."""
