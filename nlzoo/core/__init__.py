"""The ground floor: plain data and files. No torch here, and nothing that knows what a video or a network is.

errors      every failure that is the user's to fix, with its exit code
text        names that are safe to print and to store
files       files and folders that are there whole or not at all, sha256, the cache's folder
lock        one process at a time in a folder
*_spec      what a model, a view of a video and a training recipe are, as frozen dataclasses
bounds      checks of single values; changes: presets with changes, `strong,flip=no`
tables      rows as CSV, JSON lines, Parquet
progress    how long work reports its progress
"""
