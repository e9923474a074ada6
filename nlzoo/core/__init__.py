"""The ground floor: plain data and files. No torch here, and nothing that knows what a video or a network is.

errors      every failure that is the user's to fix, with its exit code
text        names that are safe to print and to store
files       files and folders that are there whole or not at all, sha256, the cache's folder
lock        one process at a time in a folder; stopping: signals that ask long work to end
model_spec  what a network is, view_spec: what it sees of a video, recipe_spec: how it is trained; frozen dataclasses
skipped     what is left out of the work, and why
bounds      checks of single values; changes: presets with changes, `strong,flip=no`
tables      rows as CSV, JSON lines, Parquet
lazy        packages of others of which only a part is imported
kept        small results in the cache folder, kept by what they follow from
progress    how long work reports its progress
"""
