"""Networks: the non-local operation, inflation and its proofs, model folders, other zoos' checkpoints.

pairwise    the four pairwise functions (paper, section 3.2), exact, never an N x N matrix
layers      the non-local block (paper, section 3.3)
frames      videos through 2-D kernels; folding: BatchNorm in convolutions
twin        a second network on the same tensors
inflate     a 2-D ResNet made 3-D in place, blocks inserted
model       networks built, checked and described: the timm boundary (`vision` is torchvision's)
checkpoint  model folders written and read, strictly
describe    what a network is, in figures; facts: in words, and kept, so that a second look needs no torch
shapes      what goes in and out of each layer, without computing it
convert     Kinetics checkpoints of other zoos as ours; labels: names for their outputs
foreign     anybody's weights, read by their header; unpickle: pickles as plain data, without running them
download    models of the Hub here, hub_dataset: datasets; hub_client: one way to ask the Hub; patience: for how long
zoo         names and folders of models and runs; pretrained: known checkpoints and fetching them
card        the README of a model folder
network     what nlzoo calls a network, for type checkers
"""
