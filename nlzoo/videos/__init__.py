"""Videos: from a folder or a list to clips for a network.

listing     what the user points at, as labelled items; no video is opened
folders     of classes; lists: of paths, list_rows: in every format; list_writer: ours; items, tree: what they share
manifest    which videos are copies that `nlzoo prepare` made, and of what
records     what is in each video, found out once and remembered
scanning    which videos of a listing can be used; splits: groups, training and validation without leaks
video       the decoder boundary; frame_folder: that of pictures; encode: the encoder's
pool        decoding processes that may die; frame_cache: decoded frames on disk
clips       which frames and rectangles a network is shown; augment: what training changes in them
loader      batches of clips that bad files cannot stop
"""
